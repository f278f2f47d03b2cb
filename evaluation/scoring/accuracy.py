"""Accuracy with intervals. An unanswered question counts as wrong in the accuracy, and its rate is reported as well."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.benchmarks import Row
from evaluation.running.controls import NO_CONTROL, SHUFFLED
from evaluation.scoring.audio_use import consistency, gains_over
from evaluation.scoring.protocols import OFFICIAL, PAPER, UNANSWERED, Decision, decide_all, skips_missing
from evaluation.scoring.statistics import clustered_error, percent_interval
from sightsound.benchmarks import Benchmark, get_benchmark
from sightsound.data.schema import LETTERS


Figures = dict[str, float | None]

ANSWERED = "answered"  # outcome of a question to which the engine returned a text


def score(decisions: Sequence[Decision], clips: Sequence[str]) -> Figures:
    """
    Accuracy with its interval and standard error, and the unanswered rate, all in percent.

    Args:
        decisions (`Sequence[Decision]`): Per question.
        clips (`Sequence[str]`): The clip of each question.

    Returns:
        `dict`: `n`, `accuracy`, `low` and `high` (Wilson, 95 %), `error` (standard error clustered by clip; None for one
            clip), `unanswered`.
    """
    correct = [decision.correct for decision in decisions]
    low, high = percent_interval(sum(correct), len(correct))
    unanswered = sum(decision.matched_by == UNANSWERED for decision in decisions)
    return {
        "n": len(correct),
        "accuracy": 100 * sum(correct) / len(correct),
        "low": low,
        "high": high,
        "error": clustered_error(correct, clips),
        "unanswered": 100 * unanswered / len(correct),
    }


def over_answered(decisions: Sequence[Decision]) -> Figures | None:
    """Accuracy over the answered questions, with its interval, in percent; None where all are unanswered."""
    answered = [decision for decision in decisions if decision.matched_by != UNANSWERED]
    if not answered:
        return None
    correct = sum(decision.correct for decision in answered)
    low, high = percent_interval(correct, len(answered))
    return {"n": len(answered), "accuracy": 100 * correct / len(answered), "low": low, "high": high}


def over_predicted(averaged: Sequence[tuple[Decision, str | None]]) -> Figures | None:
    """
    Accuracy as an official script counts it that skips questions without a prediction; an empty prediction is wrong.

    Args:
        averaged (`Sequence[tuple]`): Decision and output of each question of the average.

    Returns:
        `dict`: `n`, `accuracy`, `low` and `high` over the questions with a prediction, and `skipped`, the number of the others;
            None where all are skipped.
    """
    correct = [decision.correct for decision, output in averaged if output is not None]
    if not correct:
        return None
    low, high = percent_interval(sum(correct), len(correct))
    accuracy = 100 * sum(correct) / len(correct)
    return {"n": len(correct), "accuracy": accuracy, "low": low, "high": high, "skipped": len(averaged) - len(correct)}


def score_by(decisions: Sequence[Decision], clips: Sequence[str], groups: Sequence[str]) -> dict[str, Figures]:
    """`score` of each group of questions, groups in alphabetical order."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return {name: score([decisions[i] for i in members[name]], [clips[i] for i in members[name]]) for name in sorted(members)}


def results_of(decisions: Sequence[Decision], rows: Sequence[Row], benchmark: Benchmark) -> dict[str, Any]:
    """
    All figures of one run on a benchmark, with one control, under one protocol.

    Args:
        decisions (`Sequence[Decision]`): Per question.
        rows (`Sequence[dict]`): The questions as they were asked.
        benchmark (`Benchmark`): It says which questions are averaged, and which breakdowns there are.

    Returns:
        `dict`: The figures of `score` over the questions that the paper averages; `over_answered`, over those of them that are
            answered; `all`, over all questions, where the average leaves some out; `matched_by`, the number of answers per
            way of reading them; and the breakdowns over all questions: the benchmark's own, and `by_position`, by the letter
            of the right choice.
    """
    clips = [row["video_id"] for row in rows]
    counted = [i for i, row in enumerate(rows) if benchmark.counts(row)]
    some = len(counted) < len(rows)
    breakdowns = {
        name: score_by(decisions, clips, [row[breakdown.column] or "" for row in rows])
        for name, breakdown in benchmark.breakdowns.items()
    }
    average = [decisions[i] for i in counted]
    return {
        **score(average, [clips[i] for i in counted]),
        "over_answered": over_answered(average),
        **({"all": score(decisions, clips) | {"over_answered": over_answered(decisions)}} if some else {}),
        "matched_by": dict(sorted(Counter(decision.matched_by for decision in decisions).items())),
        **breakdowns,
        "by_position": score_by(decisions, clips, [LETTERS[row["answer"]] for row in rows]),
    }


def score_run(
    benchmark: str, protocols: Sequence[str], outputs: Mapping[str, Sequence[str | None]], rows: Mapping[str, Sequence[Row]]
) -> dict[str, dict[str, Any]]:
    """
    All figures of one run on a benchmark, with its controls.

    Args:
        benchmark (`str`): Its name.
        protocols (`Sequence[str]`): `"official"`, `"paper"`.
        outputs (`Mapping`): Per control, and `"none"` with the clip, the output to each question; None without one.
        rows (`Mapping`): Per control, the questions as they were asked: the same questions in the same order.

    Returns:
        `dict`: Per protocol, `results`, the figures per control, with `over_predicted` where the official script skips
            questions without a prediction; `gains`, of the run over each control; and under the paper's
            protocol, where choices were shuffled, `consistency`. Gains and consistency are over those averaged questions that
            have an output both with the clip and under the control; without such questions they are left out.
    """
    counts = get_benchmark(benchmark).counts
    counted = [i for i, row in enumerate(rows[NO_CONTROL]) if counts(row) and outputs[NO_CONTROL][i] is not None]
    pairs = {control: [i for i in counted if outputs[control][i] is not None] for control in outputs}
    asked = {control: decide_all(benchmark, protocols, outputs[control], rows[control]) for control in outputs}
    clips = [row["video_id"] for row in rows[NO_CONTROL]]
    scored: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        decisions = {control: asked[control][protocol] for control in asked}
        results = {control: results_of(part, rows[control], get_benchmark(benchmark)) for control, part in decisions.items()}
        if protocol == OFFICIAL and skips_missing(benchmark):
            for control, part in decisions.items():
                averaged = [(part[i], outputs[control][i]) for i, row in enumerate(rows[control]) if counts(row)]
                results[control]["over_predicted"] = over_predicted(averaged)
        scored[protocol] = {"results": results, "gains": gains_over(decisions, clips, pairs)}
        if protocol == PAPER and pairs.get(SHUFFLED):
            both = ([decisions[control][i] for i in pairs[SHUFFLED]] for control in (NO_CONTROL, SHUFFLED))
            scored[protocol]["consistency"] = consistency(*both)
    return scored

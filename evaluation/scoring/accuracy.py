"""
Scores with intervals. Unanswered is kept apart from wrong: it counts against accuracy, and is also reported by itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.benchmarks import Benchmark, Row, get_benchmark
from evaluation.running.controls import NO_CONTROL, SHUFFLED
from evaluation.scoring.audio_use import consistency, gains_over
from evaluation.scoring.protocols import PAPER, UNANSWERED, Decision, decide_all
from evaluation.scoring.statistics import clustered_error, percent_interval
from sightsound.data.schema import LETTERS


Figures = dict[str, float | None]

ANSWERED = "answered"  # outcome of a question that the engine answered, with whatever text


def score(decisions: Sequence[Decision], clips: Sequence[str]) -> Figures:
    """
    Accuracy with its interval and error and the unanswered rate, all in percent.

    Args:
        decisions (`Sequence[Decision]`): Per question.
        clips (`Sequence[str]`): The clip of each question.

    Returns:
        `dict`: `n`, `accuracy`, `low`, `high` (Wilson, 95 %), `error` (clustered by clip; None for one clip), `unanswered`.
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
    """Accuracy over the questions that were answered, with its interval, in percent; None where none was."""
    answered = [decision for decision in decisions if decision.matched_by != UNANSWERED]
    if not answered:
        return None
    correct = sum(decision.correct for decision in answered)
    low, high = percent_interval(correct, len(answered))
    return {"n": len(answered), "accuracy": 100 * correct / len(answered), "low": low, "high": high}


def score_by(decisions: Sequence[Decision], clips: Sequence[str], groups: Sequence[str]) -> dict[str, Figures]:
    """`score` per group of questions, groups in alphabetical order."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return {name: score([decisions[i] for i in members[name]], [clips[i] for i in members[name]]) for name in sorted(members)}


def results_of(decisions: Sequence[Decision], rows: Sequence[Row], benchmark: Benchmark) -> dict[str, Any]:
    """
    All figures of one run over a benchmark under one protocol.

    `by_relation`: AVQA's `question_relation`. In the miniature "Both" marks clean clips (heard as seen) and "Sound" the
    traps, where only the sound tells. `by_position` is by the letter of the right choice as it was asked. `over_answered` is
    over the questions that were answered. Where the paper's
    average leaves questions out, the figures on top are over the ones that it counts, and `all` is over every one.
    """
    clips = [row["video_id"] for row in rows]
    counted = [i for i, row in enumerate(rows) if benchmark.counts(row)]
    some = len(counted) < len(rows)
    breakdowns = {
        name: score_by(decisions, clips, [row[column] or "" for row in rows]) for name, column in benchmark.groups.items()
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
    All figures of one run over a benchmark, with its controls.

    Args:
        benchmark (`str`): Its name.
        protocols (`Sequence[str]`): `"official"`, `"paper"`.
        outputs (`Mapping`): Per control, `"none"` among them, what the model wrote to each question; None where nothing came.
        rows (`Mapping`): Per control the questions as they were asked, the same ones in one order.

    Returns:
        `dict`: Per protocol `results`, the figures per control; `gains`, of the run over each control; and where choices were
        shuffled, under the paper's protocol, `consistency`. Both are over the questions of the average that were answered both
        with the clip and under the control; where there are none, they are left out.
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
        scored[protocol] = {"results": results, "gains": gains_over(decisions, clips, pairs)}
        if protocol == PAPER and pairs.get(SHUFFLED):
            both = ([decisions[control][i] for i in pairs[SHUFFLED]] for control in (NO_CONTROL, SHUFFLED))
            scored[protocol]["consistency"] = consistency(*both)
    return scored

"""Which reasoning of a run a judge is asked about, and the figures of the scores that it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.benchmarks import Row
from evaluation.scoring.protocols import OFFICIAL, PAPER, Decision, decide_all
from evaluation.scoring.statistics import clustered_error, percent_interval
from sightsound.benchmarks import Benchmark
from sightsound.method.answers import extract_answer_text, extract_think
from sightsound.method.rubrics import middle_mean


PROTOCOLS = (OFFICIAL, PAPER)
Z_95 = 1.96

# Outcomes of a question. Where a run of the judge gave no score, the outcome is the reason of the first such run.
JUDGED, WRONG, NO_PREDICTION, NO_RUBRIC = "judged", "wrong", "no_prediction", "no_rubric"


@dataclass
class Judged:
    """
    The reasoning of one question, and what the judge gave for it.

    Args:
        row (`dict`): The question.
        correct (`dict`): Per protocol, whether the answer is right.
        reasoning (`str`), predicted (`str`): What the judge is shown.
        outcome (`str`): Until it is judged, why it is not.
        scores (`dict`): Run of the judge -> score.
        problems (`dict`): Run of the judge -> why it gave no score.
        replies (`dict`): Run of the judge -> its last reply, None where there is none.
    """

    row: Row
    correct: Mapping[str, bool]
    reasoning: str
    predicted: str
    outcome: str
    scores: dict[int, float] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    replies: dict[int, str | None] = field(default_factory=dict)

    @property
    def is_asked(self) -> bool:
        return self.outcome not in (WRONG, NO_PREDICTION, NO_RUBRIC)

    @property
    def score(self) -> float | None:
        """Mean of the middle runs; None where a run has no score."""
        return middle_mean(list(self.scores.values())) if self.outcome == JUDGED else None

    def score_under(self, protocol: str) -> float | None:
        """0 where the protocol says wrong; None where there is no rubric, or the judge gave no score."""
        if not self.correct[protocol]:
            return 0.0
        return self.score


def select(
    benchmark: str, questions: Sequence[Row], outputs: Sequence[str | None], reasonings: Mapping[str, str]
) -> list[Judged]:
    """
    Every question of a run, with what a judge is shown. A right answer under either protocol is judged.

    Args:
        outputs (`Sequence[str | None]`): As the model wrote them.
        reasonings (`Mapping`): Question id -> its reasoning, where a file has it beside the answer. Otherwise it is what the
            output has in `<think>`, or the whole output.
    """
    decided = decide_all(benchmark, PROTOCOLS, outputs, questions)
    found = []
    for i, (row, output) in enumerate(zip(questions, outputs, strict=True)):
        decisions = {protocol: decided[protocol][i] for protocol in PROTOCOLS}
        correct = {protocol: decision.correct for protocol, decision in decisions.items()}
        reasoning = reasonings.get(row["id"])
        if reasoning is None and output is not None:
            reasoning = extract_think(output) or output
        outcome = ""
        if output is None:
            outcome = NO_PREDICTION
        elif not any(correct.values()):
            outcome = WRONG
        elif not row["rubric"]:
            outcome = NO_RUBRIC
        found.append(Judged(row, correct, reasoning or "", _predicted(output, decisions[PAPER]), outcome))
    return found


def _predicted(output: str | None, decision: Decision) -> str:
    """The answer as the judge is shown it: the text of the choice in place of its letter."""
    if decision.matched_by == "letter" and decision.choice is not None:
        return decision.choice
    return "" if output is None else extract_answer_text(output)


def _figures(judged: Sequence[Judged], protocol: str) -> dict[str, Any]:
    """
    The figures of some questions under a protocol, in percent.

    Returns:
        `dict`: `n` questions with a score, its mean `score` with the 95 % interval `low` to `high` (clustered by source video;
            None for one video), `accuracy`, over the same questions, `of_right`, the mean over those answered right, and
            `unjudged`, the number of right answers without a score, which are left out.
    """
    scored = [(each, score) for each in judged if (score := each.score_under(protocol)) is not None]
    right = [score for each, score in scored if each.correct[protocol]]
    figures: dict[str, Any] = {"n": len(scored), "unjudged": len(judged) - len(scored)}
    if not scored:
        return figures | dict.fromkeys(("score", "low", "high", "accuracy", "accuracy_low", "accuracy_high", "of_right"))
    mean = 100 * sum(score for _, score in scored) / len(scored)
    error = clustered_error([score for _, score in scored], [each.row["video_id"] for each, _ in scored])
    half = None if error is None else Z_95 * error
    low, high = percent_interval(len(right), len(scored))
    return figures | {
        "score": mean,
        "low": None if half is None else max(0.0, mean - half),
        "high": None if half is None else min(100.0, mean + half),
        "accuracy": 100 * len(right) / len(scored),
        "accuracy_low": low,
        "accuracy_high": high,
        "of_right": 100 * sum(right) / len(right) if right else None,
    }


def figures_of(judged: Sequence[Judged], benchmark: Benchmark) -> dict[str, Any]:
    """Outcomes, and per protocol the figures over all questions and by the benchmark's breakdowns."""
    result: dict[str, Any] = {"outcomes": dict(sorted(Counter(each.outcome for each in judged).items()))}
    for protocol in PROTOCOLS:
        result[protocol] = _figures(judged, protocol)
        for name, breakdown in benchmark.breakdowns.items():
            groups: dict[str, list[Judged]] = {}
            for each in judged:
                groups.setdefault(each.row[breakdown.column] or "", []).append(each)
            result[protocol][name] = {group: _figures(groups[group], protocol) for group in sorted(groups)}
    return result

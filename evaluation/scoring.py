"""
Scores with intervals. Unanswered is kept apart from wrong: it counts against accuracy, and is also reported by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any


def wilson_interval(num_correct: int, num_rows: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, in percent."""
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_rows).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


def score(predictions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """
    Accuracy, its interval and the unanswered rate, all in percent, of prediction rows.

    Returns:
        `dict`: `n`, `accuracy`, `low`, `high`, `unanswered`.
    """
    correct = sum(row["correct"] for row in predictions)
    low, high = wilson_interval(correct, len(predictions))
    unanswered = sum(row["answer"] is None for row in predictions)
    return {
        "n": len(predictions),
        "accuracy": 100 * correct / len(predictions),
        "low": low,
        "high": high,
        "unanswered": 100 * unanswered / len(predictions),
    }


def score_by(predictions: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, float]]:
    """`score` per group of rows, groups in alphabetical order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in predictions:
        groups.setdefault(key(row), []).append(row)
    return {name: score(groups[name]) for name in sorted(groups)}


def results_of(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    All figures of one benchmark under one control.

    `by_relation`: AVQA's `question_relation`. In the miniature "Both" marks clean clips (heard as seen) and "Sound" the
    traps, where only the sound tells.
    """
    return {
        **score(predictions),
        "matched_by": {name: part["n"] for name, part in score_by(predictions, lambda row: row["matched_by"]).items()},
        "by_type": score_by(predictions, lambda row: row["question_type"]),
        "by_relation": score_by(predictions, lambda row: row["question_relation"]),
    }

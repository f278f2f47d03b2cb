"""
How sure a figure is: the interval of a proportion, its error where questions share clips, and two runs compared in pairs.

Everything is in percent, or percent points. Questions about one clip are right or wrong together more often than by chance,
so errors and bootstrap samples are over clips and not over questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


NUM_RESAMPLES = 2_000  # their Monte Carlo error on an interval's end is about 3 % of the interval's width
SEED = 0  # a report says the same when it is made again


def wilson_interval(num_correct: int, num_rows: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, in percent."""
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_rows).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


def _sums_by_clip(values: Sequence[float], clips: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values, and number of them, of each clip."""
    number = {clip: i for i, clip in enumerate(dict.fromkeys(clips))}
    index = np.fromiter((number[clip] for clip in clips), dtype=np.intp, count=len(clips))
    return np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index)


def clustered_error(correct: Sequence[bool], clips: Sequence[str]) -> float | None:
    """
    Standard error of an accuracy where questions share clips, in percent points (Miller 2024, arXiv 2411.00640, section 2.2).

    With the factor n / (n - 1) for n clips, as for a variance: with one question per clip this is the usual error.

    Args:
        correct (`Sequence[bool]`): Per question.
        clips (`Sequence[str]`): The clip of each question.

    Returns:
        `float` or `None`: None for questions about a single clip, which tell nothing of others.
    """
    sums, counts = _sums_by_clip(correct, clips)
    if len(sums) < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    return 100 * float(np.sqrt((residuals**2).sum() * len(sums) / (len(sums) - 1)) / counts.sum())


@dataclass(frozen=True)
class Comparison:
    """
    Two runs on the same questions.

    Args:
        n (`int`): Questions.
        difference (`float`): Accuracy of the first less that of the second, percent points.
        low, high (`float`): Its 95 % interval, by bootstrap over clips.
        only_first, only_second (`int`): Questions that only one of them has right.
        p_value (`float`): McNemar's exact test of both being right equally often; it takes questions as independent.
    """

    n: int
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    def __str__(self) -> str:
        return f"{self.difference:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def compare(first: Sequence[bool], second: Sequence[bool], clips: Sequence[str]) -> Comparison:
    """
    Compare two runs question by question.

    Args:
        first, second (`Sequence[bool]`): Whether each question was answered right, in the same order.
        clips (`Sequence[str]`): The clip of each question.
    """
    from scipy.stats import binomtest, bootstrap

    gains = np.asarray(first, dtype=int) - np.asarray(second, dtype=int)
    only_first, only_second = int((gains > 0).sum()), int((gains < 0).sum())
    differing = only_first + only_second
    low, high = -100.0, 100.0  # what one clip alone tells
    sums, counts = _sums_by_clip(gains, clips)
    if len(sums) > 1:
        interval = bootstrap(
            (sums, counts),
            lambda s, c, axis: 100 * s.sum(axis=axis) / c.sum(axis=axis),
            n_resamples=NUM_RESAMPLES,
            batch=100,
            paired=True,
            vectorized=True,
            method="percentile",
            random_state=SEED,
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return Comparison(len(gains), 100 * float(gains.mean()), low, high, only_first, only_second, p_value)

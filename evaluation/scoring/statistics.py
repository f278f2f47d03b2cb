"""
Uncertainty of figures: interval of an accuracy, standard error where questions share clips, paired comparison of two runs.

Everything is in percent or percent points. Answers to questions about the same clip are correlated, so standard errors and
bootstrap samples are taken over clips, not over questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightsound.data.statistics import wilson_interval


NUM_RESAMPLES = 2_000  # the Monte Carlo error of an interval's end is then about 3 % of the interval's width
SEED = 0  # fixed, so that a report made again shows the same figures


def percent_interval(num_correct: int, num_questions: int) -> tuple[float, float]:
    """95 % Wilson score interval of an accuracy, in percent."""
    low, high = wilson_interval(num_correct, num_questions)
    return 100 * low, 100 * high


def format_difference(points: float, low: float, high: float) -> str:
    """A difference of two accuracies with its interval, as every table shows it: `+1.5 [-0.3, +3.2]`."""
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


def _sums_by_clip(values: Sequence[float], clips: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each clip."""
    number = {clip: i for i, clip in enumerate(dict.fromkeys(clips))}
    index = np.fromiter((number[clip] for clip in clips), dtype=np.intp, count=len(clips))
    return np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index)


def clustered_error(correct: Sequence[float], clips: Sequence[str]) -> float | None:
    """
    Standard error of an accuracy, or of a mean of scores from 0 to 1, where questions share clips, in percent points (Miller
    2024, arXiv 2411.00640, section 2.2).

    The factor n / (n - 1) for n clips, as in a sample variance, makes it the usual standard error when every clip has one
    question.

    Args:
        correct (`Sequence[float]`): Per question: right (True, 1) or wrong, or a score.
        clips (`Sequence[str]`): The clip of each question.

    Returns:
        `float` or `None`: None when all questions are about one clip: a spread over clips needs two.
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
        difference (`float`): Accuracy of the first minus that of the second, percent points.
        low, high (`float`): Its 95 % interval, by bootstrap over clips.
        only_first, only_second (`int`): Questions that only the first, or only the second, answered correctly.
        p_value (`float`): McNemar's exact test that both are correct equally often; it treats questions as independent.
    """

    n: int
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    def __str__(self) -> str:
        return format_difference(self.difference, self.low, self.high)


def compare(first: Sequence[bool], second: Sequence[bool], clips: Sequence[str]) -> Comparison:
    """
    Compare two runs question by question.

    Args:
        first, second (`Sequence[bool]`): Whether each question was answered correctly, in the same order.
        clips (`Sequence[str]`): The clip of each question.
    """
    from scipy.stats import binomtest, bootstrap

    gains = np.asarray(first, dtype=int) - np.asarray(second, dtype=int)
    only_first, only_second = int((gains > 0).sum()), int((gains < 0).sum())
    differing = only_first + only_second
    low, high = -100.0, 100.0  # one clip says nothing about others
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

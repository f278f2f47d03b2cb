"""The one confidence interval of a proportion: the evaluation, its tables and the verifier all report it."""

from math import sqrt


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson score interval of a proportion.

    The formula is that of `scipy.stats.binomtest(...).proportion_ci(method="wilson")`, term by term, so the results are equal.
    It is written out here because scipy accepts integers only, and the comparison with the paper's tables needs an effective
    number of questions, which is not an integer.

    Args:
        successes (`float`): Number of successes, 0 to `trials`.
        trials (`float`): Number of trials, 0 or more.
        confidence (`float`): Probability that the interval covers the true proportion.

    Returns:
        `tuple[float, float]`: Lower and upper end, in [0, 1]; `(0.0, 1.0)` for 0 trials.
    """
    from scipy.special import ndtri

    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    q = 1 - p
    z = float(ndtri(0.5 + 0.5 * confidence))
    denominator = 2 * (trials + z**2)
    center = (2 * trials * p + z**2) / denominator
    half_width = z / denominator * sqrt(4 * trials * p * q + z**2)
    low = 0.0 if successes == 0 else center - half_width
    high = 1.0 if successes == trials else center + half_width
    return low, high

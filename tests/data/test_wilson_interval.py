"""The Wilson interval, against scipy's."""

import pytest
from scipy.stats import binomtest

from sightsound.data.statistics import wilson_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("trials", [1, 7, 40, 600, 9129])
def test_it_equals_scipys_interval(trials: int, confidence: float) -> None:
    for successes in range(0, trials + 1, max(1, trials // 40)):
        expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert wilson_interval(successes, trials, confidence) == (expected.low, expected.high)


def test_a_fractional_number_of_trials_lies_between_its_neighbours() -> None:
    lows = [wilson_interval(0.7 * trials, trials)[0] for trials in (20, 20.5, 21)]
    assert lows == sorted(lows)


def test_without_trials_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)

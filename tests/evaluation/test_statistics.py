"""Intervals, errors and tests against published and closed-form figures."""

import math

import numpy as np
import pytest

from evaluation.scoring.statistics import clustered_error, compare, percent_interval


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I,
# method 3 (score, without continuity correction).
@pytest.mark.parametrize(
    ("num_correct", "num_rows", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_the_interval_is_the_published_one(num_correct, num_rows, low, high):
    assert percent_interval(num_correct, num_rows) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))


def test_the_interval_mirrors_and_stays_inside_its_range():
    low, high = percent_interval(20, 20)
    assert (low, high) == (pytest.approx(100 - 16.11, abs=0.005), pytest.approx(100))


def test_with_one_question_per_clip_the_clustered_error_is_the_usual_one():
    correct = [True] * 30 + [False] * 70
    usual = 100 * np.std(correct, ddof=1) / math.sqrt(100)
    assert clustered_error(correct, [str(i) for i in range(100)]) == pytest.approx(usual)


def test_questions_that_only_repeat_their_clips_answer_add_no_certainty():
    once = [True, False, True, True, False]
    clips = list("abcde")
    assert clustered_error(once * 7, clips * 7) == pytest.approx(clustered_error(once, clips))
    assert clustered_error(once * 7, [str(i) for i in range(35)]) < clustered_error(once, clips)


def test_one_clip_tells_nothing_of_others():
    assert clustered_error([True, False], ["a", "a"]) is None
    compared = compare([True, True], [False, False], ["a", "a"])
    assert (compared.difference, compared.low, compared.high) == (100.0, -100.0, 100.0)


# A. Agresti, "Categorical Data Analysis", 2nd edition, section 10.1.1: two polls of the same 1,600 people on a prime minister;
# the difference is 0.04 and its interval 0.04 -+ 1.96 x 0.0095.
def test_the_difference_of_two_runs_has_the_published_interval_and_test():
    pairs = [(True, True)] * 794 + [(True, False)] * 150 + [(False, True)] * 86 + [(False, False)] * 570
    first, second = zip(*pairs, strict=True)
    compared = compare(first, second, [str(i) for i in range(len(pairs))])
    assert compared.difference == pytest.approx(4.0)
    assert (compared.low, compared.high) == (pytest.approx(2.1, abs=0.25), pytest.approx(5.9, abs=0.25))
    assert (compared.n, compared.only_first, compared.only_second) == (1600, 150, 86)
    assert compared.p_value == pytest.approx(2 * sum(math.comb(236, k) for k in range(87)) / 2**236)


def test_the_interval_of_a_difference_is_over_clips_and_says_the_same_again():
    rng = np.random.default_rng(0)
    by_clip = rng.random(40) < 0.6
    first, second = np.repeat(by_clip, 10), rng.random(400) < 0.5
    clips, questions = [str(i // 10) for i in range(400)], [str(i) for i in range(400)]
    over_clips, over_questions = compare(first, second, clips), compare(first, second, questions)
    assert over_clips == compare(first, second, clips)
    assert over_clips.high - over_clips.low > 1.5 * (over_questions.high - over_questions.low)


def test_a_run_is_no_better_than_itself():
    compared = compare([True, False], [True, False], ["a", "b"])
    assert (compared.difference, compared.low, compared.high, compared.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert str(compared) == "+0.0 [+0.0, +0.0]"

"""A judge's reply becomes a share of the rubric's points, or nothing; five of them make one score."""

import json
from string import Formatter

import pytest

from sightsound.method.prompts import JUDGE_FIELDS, JUDGE_RUBRIC
from sightsound.method.rubrics import middle_mean, read_score, write_request
from tests.support.mmar import criterion


RUBRIC = [criterion("cue"), criterion("step", choices=[0, 1, 2]), criterion("end")]


def points(*scores, **more) -> str:
    return json.dumps([{"name": "x", "score": score, "reason": "It says [1]."} | more for score in scores])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (points(1, 2, 1), 1.0),
        (points(0, 1, 1), 0.5),
        (points(0, 0, 0), 0.0),
        (points(1.0, 2, 1), 1.0),
        (f"```json\n{points(1, 0, 1)}\n```", 0.5),
        (f"<think>[0, 0, 0]?</think>\nHere it is: {points(1, 0, 0)}", 0.25),
        (f'{{"criteria": {points(1, 2, 0)}}}', 0.75),
        (json.dumps([{"score": 1}, {"score": 1}, {"score": 0}]), 0.5),
    ],
)
def test_points_are_a_share_of_all_points(reply, score):
    assert read_score(reply, RUBRIC) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot grade this.",
        points(1, 2),
        points(1, 2, 1, 1),
        points(2, 2, 1),
        points(0.5, 2, 1),
        points(-1, 2, 1),
        points(True, 2, 1),
        points("1", 2, 1),
        points(None, 2, 1),
        points([1], 2, 1),
        points(1, 2, 1)[:-9],
        "[1, 2, 1]",
        json.dumps([{"points": 1}] * 3),
        "[" * 100_000 + "]",
        '[{"score": NaN}, {"score": 1}, {"score": 1}]',
    ],
)
def test_any_other_reply_has_no_score(reply):
    assert read_score(reply, RUBRIC) is None


def test_the_lowest_and_the_highest_of_five_are_left_out():
    assert middle_mean([0.2, 1.0, 0.4, 0.6, 0.8]) == pytest.approx(0.6)
    assert middle_mean([1.0, 1.0, 1.0, 0.0, 0.0]) == pytest.approx(2 / 3)


def test_the_judge_is_shown_the_reasoning_the_truth_and_each_criterion():
    assert {name for _, name, _, _ in Formatter().parse(JUDGE_RUBRIC) if name} == set(JUDGE_FIELDS)
    truth = {"question": "Who?", "answer": "Man", "reference": "A low voice."}
    text = write_request(JUDGE_RUBRIC, **truth, rubric=RUBRIC, reasoning="I hear {braces}.", predicted="Man")
    for shown in ("Who?", "Man", "A low voice.", "I hear {braces}.", "2. step (0 or 1 or 2 points): Award 1 point for step."):
        assert shown in text
    empty = write_request(JUDGE_RUBRIC, **truth | {"reference": ""}, rubric=RUBRIC, reasoning=" ", predicted="Man")
    assert "How one gets there: not given" in empty and "(nothing)" in empty

"""Unanswered apart from wrong, breakdowns of each benchmark, and what a run gains over its controls."""

import pytest

from evaluation.benchmarks import BENCHMARKS
from evaluation.protocols import Decision
from evaluation.scoring import results_of, score, score_by, score_run
from evaluation.statistics import clustered_error, wilson_interval


def question(number: int, gold: int, **fields) -> dict:
    labels = {"question_type": "Which", "question_relation": "Both", "difficulty": "easy", "sub_category": "", "in_paper": True}
    choices = ["dog", "bell"]
    asked = {"id": str(number), "video_id": f"clip-{number}", "choices": choices, "answer": gold, "answer_text": choices[gold]}
    return asked | labels | fields


ROWS = [
    question(0, 0),
    question(1, 0, question_type="Where"),
    question(2, 0, question_relation="Sound"),
    question(3, 1, question_relation="Sound"),
]
DECISIONS = [Decision(True, "letter"), Decision(False, "letter"), Decision(False, "none"), Decision(True, "similarity")]
CLIPS = [row["video_id"] for row in ROWS]


def test_unanswered_counts_against_accuracy_and_by_itself():
    figures = score(DECISIONS, CLIPS)
    assert (figures["n"], figures["accuracy"], figures["unanswered"]) == (4, 50.0, 25.0)
    assert (figures["low"], figures["high"]) == wilson_interval(2, 4)
    assert figures["error"] == clustered_error([True, False, False, True], CLIPS)


def test_scores_are_grouped_in_alphabetical_order():
    groups = score_by(DECISIONS, CLIPS, [row["question_relation"] + "!" for row in ROWS])
    assert {name: (part["n"], part["accuracy"], part["unanswered"]) for name, part in groups.items()} == {
        "Both!": (2, 50.0, 0.0),
        "Sound!": (2, 50.0, 50.0),
    }
    assert list(score_by(DECISIONS, CLIPS, [row["question_type"] for row in ROWS])) == ["Where", "Which"]


def test_the_results_of_a_run_hold_every_breakdown():
    results = results_of(DECISIONS, ROWS, BENCHMARKS["avqa"])
    assert results["matched_by"] == {"letter": 2, "none": 1, "similarity": 1}
    assert results["by_type"]["Where"]["accuracy"] == 0.0
    assert results["by_relation"]["Sound"]["unanswered"] == 50.0
    assert (results["by_position"]["A"]["n"], results["by_position"]["B"]["accuracy"]) == (3, 100.0)
    assert {name: results[name] for name in score(DECISIONS, CLIPS)} == score(DECISIONS, CLIPS)
    assert {"by_difficulty", "by_sub_category"} <= results_of(DECISIONS, ROWS, BENCHMARKS["mmau"]).keys()


def test_what_the_paper_leaves_out_is_in_no_average_but_in_the_figures_over_all():
    rows = [*ROWS[:3], ROWS[3] | {"in_paper": False, "question_type": "Location"}]
    results = results_of(DECISIONS, rows, BENCHMARKS["music_avqa"])
    assert (results["n"], results["accuracy"]) == (3, pytest.approx(100 / 3))
    assert (results["all"]["n"], results["all"]["accuracy"]) == (4, 50.0)
    assert results["by_type"]["Location"]["accuracy"] == 100.0
    assert "all" not in results_of(DECISIONS, ROWS, BENCHMARKS["music_avqa"])


def test_a_run_is_scored_by_each_protocol_and_against_each_control():
    outputs = {"none": ["dog", "(A) dog", "B", "bell"], "silent": ["dog", None, "dog", "dog"]}
    scored = score_run("mmau", ["official", "paper"], outputs, {"none": ROWS, "silent": ROWS})
    assert {name: part["results"]["none"]["accuracy"] for name, part in scored.items()} == {"official": 75.0, "paper": 75.0}
    assert scored["paper"]["results"]["silent"]["unanswered"] == 25.0
    gain = scored["paper"]["gains"]["silent"]
    assert (gain["difference"], gain["only_first"], gain["only_second"]) == (25.0, 2, 1)

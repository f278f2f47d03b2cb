"""Accuracy and unanswered rate, the breakdowns of each benchmark, and the gain of a run over its controls."""

import pytest

from evaluation.scoring.accuracy import results_of, score, score_by, score_run
from evaluation.scoring.audio_use import controls_without_gain
from evaluation.scoring.statistics import clustered_error, percent_interval
from sightsound.benchmarks import get_benchmark
from tests.support.questions import CLIPS, DECISIONS, ROWS, question


def test_unanswered_counts_against_accuracy_and_by_itself():
    figures = score(DECISIONS, CLIPS)
    assert (figures["n"], figures["accuracy"], figures["unanswered"]) == (4, 50.0, 25.0)
    assert (figures["low"], figures["high"]) == percent_interval(2, 4)
    assert figures["error"] == clustered_error([True, False, False, True], CLIPS)


def test_scores_are_grouped_in_alphabetical_order():
    groups = score_by(DECISIONS, CLIPS, [row["question_relation"] + "!" for row in ROWS])
    assert {name: (part["n"], part["accuracy"], part["unanswered"]) for name, part in groups.items()} == {
        "Both!": (2, 50.0, 0.0),
        "Sound!": (2, 50.0, 50.0),
    }
    assert list(score_by(DECISIONS, CLIPS, [row["question_type"] for row in ROWS])) == ["Where", "Which"]


def test_the_results_of_a_run_hold_every_breakdown():
    results = results_of(DECISIONS, ROWS, get_benchmark("avqa"))
    assert results["matched_by"] == {"letter": 2, "none": 1, "similarity": 1}
    assert results["by_type"]["Where"]["accuracy"] == 0.0
    assert results["by_relation"]["Sound"]["unanswered"] == 50.0
    assert (results["by_position"]["A"]["n"], results["by_position"]["B"]["accuracy"]) == (3, 100.0)
    assert {name: results[name] for name in score(DECISIONS, CLIPS)} == score(DECISIONS, CLIPS)
    assert {"by_difficulty", "by_sub_category"} <= results_of(DECISIONS, ROWS, get_benchmark("mmau")).keys()


def test_what_the_paper_leaves_out_is_in_no_average_but_in_the_figures_over_all():
    rows = [*ROWS[:3], ROWS[3] | {"in_paper": False, "question_type": "Location"}]
    results = results_of(DECISIONS, rows, get_benchmark("music_avqa"))
    assert (results["n"], results["accuracy"]) == (3, pytest.approx(100 / 3))
    assert (results["all"]["n"], results["all"]["accuracy"]) == (4, 50.0)
    assert results["by_type"]["Location"]["accuracy"] == 100.0
    assert "all" not in results_of(DECISIONS, ROWS, get_benchmark("music_avqa"))


def test_a_run_is_scored_by_each_protocol_and_against_each_control():
    outputs = {"none": ["dog", "(A) dog", "B", "bell"], "silent": ["dog", None, "dog", "dog"]}
    scored = score_run("mmau", ["official", "paper"], outputs, {"none": ROWS, "silent": ROWS})
    assert {name: part["results"]["none"]["accuracy"] for name, part in scored.items()} == {"official": 75.0, "paper": 75.0}
    assert scored["paper"]["results"]["silent"]["unanswered"] == 25.0
    gain = scored["paper"]["gains"]["silent"]
    assert (gain["n"], gain["only_first"], gain["only_second"]) == (3, 1, 1), "what never came is no wrong answer"


def paper(benchmark: str, rows: list[dict], **outputs: list[str | None]) -> dict:
    return score_run(benchmark, ["paper"], outputs, dict.fromkeys(outputs, rows))["paper"]


def test_a_control_that_was_asked_in_part_shows_nothing_of_the_rest():
    rows = [question(i, i % 2) for i in range(1000)]
    always = ["dog"] * 1000  # whatever it is given
    scored = paper("avqa", rows, none=always, silent=["dog"] * 10 + [None] * 990)
    gain = scored["gains"]["silent"]
    assert (gain["n"], gain["difference"]) == (10, 0.0) and controls_without_gain(scored["gains"]) == ["silent"]
    assert paper("avqa", rows, none=[None] * 990 + always[:10], silent=always)["gains"]["silent"]["n"] == 10
    assert paper("avqa", rows, none=always, silent=[None] * 1000)["gains"] == {}, "not tested"


def test_a_choice_is_kept_or_not_only_where_both_orders_were_answered():
    scored = paper("avqa", ROWS, none=["dog", "bell", None, "dog"], shuffled=["dog", "dog", "dog", None])
    assert (scored["consistency"]["n"], scored["consistency"]["same_choice"]) == (2, 50.0)
    assert "consistency" not in paper("avqa", ROWS, none=["dog"] * 4, shuffled=[None] * 4)


def test_gains_are_over_the_questions_of_the_average():
    """All right with the clip and nothing under silence on what counts; the other way round on what no average has."""
    rows = [question(i, 0, in_paper=i < 4) for i in range(8)]
    heard, silent = ["dog"] * 4 + ["bell"] * 4, ["bell"] * 4 + ["dog"] * 4
    scored = paper("music_avqa", rows, none=heard, silent=silent, shuffled=["dog"] * 8)
    assert (scored["results"]["none"]["accuracy"], scored["results"]["silent"]["accuracy"]) == (100.0, 0.0)
    assert (scored["gains"]["silent"]["n"], scored["gains"]["silent"]["difference"]) == (4, 100.0)
    assert (scored["consistency"]["n"], scored["consistency"]["same_choice"]) == (4, 100.0)

"""Scores against published intervals, and unanswered apart from wrong."""

import pytest

from evaluation.scoring import results_of, score, score_by, wilson_interval


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I,
# method 3 (score, without continuity correction).
@pytest.mark.parametrize(
    ("num_correct", "num_rows", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_the_interval_is_the_published_one(num_correct, num_rows, low, high):
    assert wilson_interval(num_correct, num_rows) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))


def test_the_interval_mirrors_and_stays_inside_its_range():
    low, high = wilson_interval(20, 20)
    assert (low, high) == (pytest.approx(100 - 16.11, abs=0.005), pytest.approx(100))


def prediction(answer: int | None, gold: int, **fields: str) -> dict:
    defaults = {"question_type": "Which", "question_relation": "Both", "matched_by": "none" if answer is None else "letter"}
    return {"answer": answer, "gold": gold, "correct": answer == gold, **defaults, **fields}


ROWS = [
    prediction(0, 0),
    prediction(1, 0, question_type="Where"),
    prediction(None, 0, question_relation="Sound"),
    prediction(1, 1, matched_by="similarity", question_relation="Sound"),
]


def test_unanswered_counts_against_accuracy_and_by_itself():
    figures = score(ROWS)
    assert (figures["n"], figures["accuracy"], figures["unanswered"]) == (4, 50.0, 25.0)
    assert (figures["low"], figures["high"]) == wilson_interval(2, 4)


def test_scores_are_grouped_in_alphabetical_order():
    groups = score_by(ROWS, lambda row: row["question_relation"] + "!")
    assert {name: (part["n"], part["accuracy"], part["unanswered"]) for name, part in groups.items()} == {
        "Both!": (2, 50.0, 0.0),
        "Sound!": (2, 50.0, 50.0),
    }
    assert list(score_by(ROWS, lambda row: row["question_type"])) == ["Where", "Which"]


def test_the_results_of_a_run_hold_every_breakdown():
    results = results_of(ROWS)
    assert results["matched_by"] == {"letter": 2, "none": 1, "similarity": 1}
    assert results["by_type"]["Where"]["accuracy"] == 0.0
    assert results["by_relation"]["Sound"]["unanswered"] == 50.0
    assert {name: results[name] for name in score(ROWS)} == score(ROWS)

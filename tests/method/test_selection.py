"""The method's rules, on one ledger that can be checked by eye."""

import pytest

from sightsound.cli import InputError
from sightsound.data.parquet import read_parquet
from sightsound.method.ledger import Unjoined, join_verdicts
from sightsound.method.prompts import COT_PROMPT, DIRECT_PROMPT, question_text
from sightsound.method.selection import (
    ARMS,
    FILTERS,
    Arm,
    Filter,
    Funnel,
    gold_labels,
    is_unanimous,
    majority,
    outcome_meanings,
    select,
    trace_outcome,
)
from sightsound.method.verdicts import VERDICTS


CHOICES = ["dog", " bell"]


def trace(name: str, answer: int | None, verdict: str | None = None, has_format: bool = True) -> dict:
    text = f"<think>{name}</think><answer>{answer}</answer>" if has_format else name
    return {"text": text, "think": name, "answer": answer, "finish_reason": "stop", "verdict": verdict, "verdict_text": None}


def question(row_id: str, *traces: dict) -> dict:
    return {"id": row_id, "question": "What?", "choices": CHOICES, "traces": list(traces), **trace_outcome(traces)}


LEDGER = [
    question("agreed", trace("a1", 1, "accept"), trace("a2", 1, "reject"), trace("a3", 1, "accept")),
    question("first-rejected", trace("r1", 0, "reject"), trace("r2", 0, "accept")),
    question("all-rejected", trace("x1", 0, "reject"), trace("x2", 0, "invalid")),
    question("split", trace("s1", 0, "accept"), trace("s2", 1, "accept"), trace("s3", 1, "accept")),
    question("one-unanswered", trace("u1", 0, "accept"), trace("u2", None)),
    question("silent", trace("n1", None), trace("n2", None)),
    question("format", trace("f1", 0, "accept", has_format=False), trace("f2", 0, "accept")),
    question("no-format", trace("b1", 0, "accept", has_format=False), trace("b2", 0, "reject")),
    question("unverified", trace("v1", 0), trace("v2", 0)),
    question("unclear", trace("c1", 0, "unclear"), trace("c2", 0, "no_reasoning"), trace("c3", 0, "unclear")),
]


@pytest.mark.parametrize(
    ("answers", "unanimous"),
    [
        ([1, 1, 1], True),
        ([1], True),
        ([1, 0], False),
        ([1, None], False),
        ([0, None], False),  # index 0 is an answer
        ([None, None], True),
        ([0, 0, 0, 0, 0, 0, 0, 1], False),  # one of eight is enough
        ([], False),
    ],
)
def test_no_answer_is_an_answer_of_its_own(answers, unanimous):
    assert is_unanimous(answers) is unanimous


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([0, 1, 1], 1), ([1, 0, 0, 1], 1), ([0, 1, 1, 0], 0), ([None, None, 2], 2), ([None], None), ([], None)],
)
def test_the_majority_of_equals_is_the_earliest(answers, expected):
    assert majority(answers) == expected


def test_every_question_has_an_outcome():
    assert {row["id"]: (row["outcome"], row["teacher_answer"], row["unanimous"]) for row in LEDGER} == {
        "agreed": ("accepted", 1, True),
        "first-rejected": ("accepted", 0, True),
        "all-rejected": ("all_traces_rejected", 0, True),
        "split": ("not_unanimous", 1, False),
        "one-unanswered": ("not_unanimous", 0, False),
        "silent": ("no_answer", None, True),
        "format": ("accepted", 0, True),
        "no-format": ("bad_format", 0, True),
        "unverified": ("not_verified", 0, True),
        "unclear": ("unclear", 0, True),
    }


SELECTED = {
    "cot": ["a1", "r1", "x1", "s1", "u1", "v1", "c1"],
    "agfv": ["a1", "s1", "u1"],
    "tts": ["a1", "a2", "a3", "r1", "r2", "x1", "x2", "f2", "b2", "v1", "v2", "c1", "c2", "c3"],
    "tts_agfv": ["a1", "a3", "r2", "f2"],
    "tts_claims": ["a1", "a3", "r2", "u1", "f2"],  # the traces that survive have to agree, not all that were written
}


@pytest.mark.parametrize("selection", SELECTED)
def test_an_arm_selects_these_traces(selection):
    rows = select(LEDGER, selection)
    assert [row["completion"].split("</think>")[0].removeprefix("<think>") for row in rows] == SELECTED[selection]


def test_the_label_arm_takes_the_teachers_answer_of_every_answered_question():
    rows = select(LEDGER, "label")
    labels = {row["id"]: row["completion"] for row in rows}
    assert labels == {row["id"]: "<answer>dog</answer>" for row in LEDGER if row["id"] != "silent"} | {
        "agreed": "<answer>bell</answer>",
        "split": "<answer>bell</answer>",
    }
    assert rows[0]["prompt"] == [{"role": "user", "content": question_text("What?", CHOICES, DIRECT_PROMPT)}]


def test_the_ground_truth_arm_takes_the_annotated_answer_of_every_question():
    asked = [{"id": "1", "question": "What?", "choices": CHOICES, "answer": 1}]
    assert gold_labels(asked) == [
        {
            "id": "1",
            "choices": CHOICES,
            "prompt": [{"role": "user", "content": question_text("What?", CHOICES, DIRECT_PROMPT)}],
            "completion": "<answer>bell</answer>",
        }
    ]
    assert ARMS["ground_truth"].prompt == ARMS["label"].prompt == DIRECT_PROMPT


def test_a_selected_row_carries_what_training_needs():
    assert select(LEDGER, "tts_agfv")[0] == {
        "id": "agreed",
        "teacher_answer": 1,
        "choices": CHOICES,
        "prompt": [{"role": "user", "content": question_text("What?", CHOICES, COT_PROMPT)}],
        "completion": "<think>a1</think><answer>1</answer>",
    }


def test_every_arm_is_covered_here():
    assert {*SELECTED, "label", "ground_truth"} == set(ARMS)


def test_an_unknown_arm_is_refused_with_the_known_ones():
    known = "label, cot, agfv, tts, tts_agfv, tts_claims"
    with pytest.raises(InputError, match=f"unknown selection 'best'; expected one of {known}"):
        select(LEDGER, "best")


def test_an_empty_selection_is_an_error_that_counts_the_outcomes():
    with pytest.raises(InputError, match=r"'tts_agfv' is empty \(1 all_traces_rejected, 1 no_answer\)"):
        select([row for row in LEDGER if row["id"] in ("all-rejected", "silent")], "tts_agfv")
    with pytest.raises(InputError, match="the ledger is empty"):
        select([], "cot")


def test_an_arm_is_added_in_the_table_alone(monkeypatch):
    def longest(row: dict) -> list[str]:
        return [max((trace["text"] for trace in row["traces"]), key=len)]

    monkeypatch.setitem(ARMS, "longest", Arm(name="longest", meaning="the longest trace", completions=longest))
    assert len(select(LEDGER, "longest")) == len(LEDGER)
    with pytest.raises(InputError, match="expected one of label, cot, agfv, tts, tts_agfv, tts_claims, longest"):
        select(LEDGER, "best")


LONG = Filter(
    name="long enough",
    passes=lambda traces: all(len(trace["think"]) > 1 for trace in traces),
    outcome="too_short",
    meaning="a trace has less than two characters",
    step="long enough in all of {num_traces} traces",
)


def test_a_filter_is_added_in_the_list_alone(monkeypatch):
    """It decides outcomes, and so what the full method trains on; funnel and card count it, the page explains it."""
    monkeypatch.setattr("sightsound.method.selection.FILTERS", [FILTERS[0], LONG, *FILTERS[1:]])
    ledger = [question("1", trace("a", 1, "accept")), *LEDGER, question("2", trace("b", None))]
    assert [row["outcome"] for row in ledger] == ["too_short", *(row["outcome"] for row in LEDGER), "no_answer"]
    assert {row["id"] for row in select(ledger, "tts_agfv")} == {"agreed", "first-rejected", "format"}
    assert "1" in {row["id"] for row in select(ledger, "tts")}, "the other arms are the paper's"
    funnel = Funnel()
    list(funnel.count(ledger))
    steps = {"asked": 12, "answered by the teacher": 10, "long enough": 9, "unanimous": 7, "with a verdict": 5, "accepted": 3}
    assert funnel.steps() == steps and list(funnel.steps()) == list(steps)
    assert ("long enough in all of 8 traces", 9) in funnel.card_steps(8)
    assert "1 too_short" in str(funnel) and outcome_meanings()["too_short"] == LONG.meaning


def test_every_outcome_of_a_filter_has_a_meaning():
    outcomes = {row["outcome"] for row in LEDGER}
    assert outcomes <= outcome_meanings().keys() and all(outcome_meanings().values())


def named(*ids: str, verdict: str | None = None, text: str = "a") -> list[dict]:
    return [question(row_id, trace(f"{text}{row_id}", 1, verdict), trace(f"b{row_id}", 1, verdict)) for row_id in ids]


def joined(traces: list[dict], verdicts: list[dict]) -> tuple[list[tuple[str, str]], Unjoined]:
    unjoined = Unjoined()
    rows = [(row["id"], row["outcome"]) for row in join_verdicts(traces, verdicts, unjoined)]
    return rows, unjoined


def test_verdicts_are_joined_in_order_and_may_be_missing():
    rows, unjoined = joined(named("1", "2", "3", "4"), named("2", "4", verdict="accept"))
    assert rows == [("1", "not_verified"), ("2", "accepted"), ("3", "not_verified"), ("4", "accepted")]
    unjoined.check("verdicts")
    assert joined(named("1"), [])[0] == [("1", "not_verified")]
    assert joined([], [])[0] == []


def test_verdicts_that_belong_to_nothing_are_not_dropped_silently():
    rows, unjoined = joined(named("1", "2"), named("1", "5", "2", verdict="accept"))
    assert rows == [("1", "accepted"), ("2", "not_verified")]
    assert unjoined.foreign == ["5", "2"]
    with pytest.raises(InputError, match=r"2 verdicts \(first: 5\) are on no question of the traces, or not in their order"):
        unjoined.check("verdicts")


def test_verdicts_on_texts_that_are_no_longer_there_are_found():
    _, unjoined = joined(named("1", "2", "3"), [*named("1", verdict="accept"), *named("2", "3", verdict="accept", text="x")])
    with pytest.raises(InputError, match=r"2 questions \(first: 2\) have verdicts on other traces"):
        unjoined.check("verdicts")


def test_each_step_of_the_funnel_holds_the_next():
    funnel = Funnel()
    assert list(funnel.count(LEDGER)) == LEDGER
    steps = funnel.steps()
    assert steps == {"asked": 10, "answered by the teacher": 9, "unanimous": 7, "with a verdict": 5, "accepted": 3}
    # A question without any answer is unanimous in the paper's sense and yet not answered.
    assert sum(row["unanimous"] for row in LEDGER) == 8
    assert funnel.verdicts == {"accept": 10, "reject": 4, "invalid": 1, None: 5, "unclear": 2, "no_reasoning": 1}
    assert str(funnel).startswith("10 questions: 3 accepted, 2 not_unanimous")
    assert "1 not checked yet" in str(funnel) and "1 unclear" in str(funnel)


@pytest.mark.parametrize("reason", ["no_reasoning", "no_claims", "unclear", "refused", "cut", "corrupt_media", "server_error"])
def test_why_nothing_was_judged_is_an_outcome_apart_from_rejections(reason):
    lacking = trace("a", 0, reason)
    assert question("1", lacking, lacking)["outcome"] == reason
    assert question("1", lacking, trace("b", 0, "reject"))["outcome"] == "all_traces_rejected"
    assert question("1", lacking, trace("b", 0, "accept"))["outcome"] == "accepted"
    assert question("1", lacking, trace("b", 1, reason))["outcome"] == "not_unanimous"
    assert reason in VERDICTS, "the card explains it"


def test_rows_come_back_from_row_groups_of_any_size(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": i, "text": str(i)} for i in range(350)]
    for name, part, size in (("a", rows[:250], 250), ("b", rows[250:], 7)):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / name, row_group_size=size)
    assert list(read_parquet([tmp_path / "a", tmp_path / "b"])) == rows
    assert list(read_parquet([tmp_path / "b"], ["id"])) == [{"id": row["id"]} for row in rows[250:]]

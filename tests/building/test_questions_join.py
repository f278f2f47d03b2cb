"""Which of a segment's written questions are kept."""

from pathlib import Path

import pytest

from sightsound.building.questions_join import QuestionJoin, write_written
from sightsound.data.parquet import read_parquet
from sightsound.data.schema import BUILT
from sightsound.method.question_filters import ANSWERABLE


@pytest.mark.parametrize(
    ("right", "tries", "max_guessed", "outcome"),
    [(8, 10, 0.8, BUILT), (3, 5, 0.6, BUILT), (9, 10, 0.8, ANSWERABLE), (6, 8, 0.7, ANSWERABLE), (3, 4, 0.75, BUILT)],
)
def test_a_question_is_dropped_if_more_tries_are_right_than_the_flag_allows(
    tmp_path: Path, right: int, tries: int, max_guessed: float, outcome: str
) -> None:
    question = {"type": "which", "question": "What is heard?", "choices": ["a bell", "a dog", "rain", "a car"], "answer": 0}
    shares = {"text_only_correct": right / tries, "silent_correct": None, "blind_tries": tries}
    slot = question | shares | {"outcome": None, "detail": None}
    made = dict.fromkeys(("outcome", "teacher", "teacher_revision", "answerers", "sampling"))
    write_written([({"id": "a", "slots": [slot], **made}, None)], tmp_path / "rows", tmp_path / "ledger")
    (row,) = read_parquet([tmp_path / "rows"])
    _, entries = QuestionJoin(max_guessed, seed=0).decide(row, None, "video")
    assert entries[1]["outcome"] == outcome

"""AVQA's questions: the official annotations, row by row."""

from typing import Any

from sightsound import schema
from sightsound.annotations import RowError, audio_question, expect_choices, expect_id, expect_keys, expect_text, optional_label
from sightsound.benchmarks.pinned import PinnedFile
from sightsound.media import VIDEO_NAME


# The authors' own repository (AlyssaYoung/AVQA) does not hold the questions, and nobody publishes a digest: a report tells
# the sha256 of the file that was scored.
PINNED = PinnedFile("val_qa.json of AVQA, as in data/ of plnguyen2908/AVQA-viz at commit f7c00b2")
ID_KEY = "id"
NUM_CHOICES = 4
EXPECTED_KEYS = ("id", "video_name", "question_text", "multi_choice", "answer")


def to_row(annotation: Any) -> dict[str, Any]:
    """
    One annotation -> one row without its sound; choices keep their outer spaces and their duplicates.

    An annotation (val_qa.json, id 1139):

        {"id": 1139, "video_name": "06GyG4-wONQ_000006", "video_id": 1395,
         "question_text": "How many animals are there in the video?", "multi_choice": ["3", "One", "4", "2"], "answer": 3,
         "question_relation": "Both", "question_type": "Which"}
    """
    expect_keys(annotation, EXPECTED_KEYS)
    name = VIDEO_NAME.fullmatch(str(annotation["video_name"]))
    if name is None:
        expected = "11-character YouTube id + '_' + 6-digit start second"
        raise RowError(schema.BAD_ANNOTATION, f"video_name {annotation['video_name']!r} is not {expected}")
    question = expect_text(annotation, "question_text")
    row_id = expect_id(annotation, "id")
    choices, answer = expect_choices(annotation["multi_choice"], NUM_CHOICES, NUM_CHOICES), annotation["answer"]
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise RowError(schema.ANSWER_OUT_OF_RANGE, f"expected an index below {len(choices)}, found {answer!r}")
    return {
        "id": row_id,
        "video_id": name.group(1),
        "start_s": float(name.group(2)),
        "question": audio_question(question),
        "video_question": question,
        "choices": choices,
        "answer": answer,
        "answer_text": choices[answer],
        "question_relation": optional_label(annotation, "question_relation"),
        "question_type": optional_label(annotation, "question_type"),
    }

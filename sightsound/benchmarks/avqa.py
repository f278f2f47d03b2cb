"""AVQA's questions: the official annotations, row by row."""

import sys
from typing import Any

from sightsound.benchmarks.pinned import PinnedFile
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.annotations import (
    RowError,
    audio_question,
    expect_choices,
    expect_file_name,
    expect_id,
    expect_keys,
    expect_text,
    optional_label,
)
from sightsound.data.clips import VIDEO_NAME
from sightsound.data.schema import LETTERS


# The authors' own repository (AlyssaYoung/AVQA) does not hold the questions, and nobody publishes a digest: a report tells
# the sha256 of the file that was scored.
PINNED = PinnedFile("val_qa.json of AVQA, as in data/ of plnguyen2908/AVQA-viz at commit f7c00b2")
ID_KEY = "id"
NUM_CHOICES = 4
MANY_ANSWERS = 5  # from so many on, no 0 among them is worth a warning
EXPECTED_KEYS = ("id", "video_name", "question_text", "multi_choice", "answer")


def to_row(annotation: Any) -> dict[str, Any]:
    """
    One annotation -> one row without its sound; choices keep their outer spaces and their duplicates.

    Its `video_name`, which is no column of the dataset, is a name as AVQA's (11-character YouTube id, `_`, 6-digit start
    second, no extension) or that of any file, which is taken whole: `video_id` is then the name itself and `start_s` 0.

    An annotation (val_qa.json, id 1139):

        {"id": 1139, "video_name": "06GyG4-wONQ_000006", "video_id": 1395,
         "question_text": "How many animals are there in the video?", "multi_choice": ["3", "One", "4", "2"], "answer": 3,
         "question_relation": "Both", "question_type": "Which"}
    """
    expect_keys(annotation, EXPECTED_KEYS)
    name = expect_file_name(annotation, "video_name")
    of_avqa = VIDEO_NAME.fullmatch(name)
    question = expect_text(annotation, "question_text")
    row_id = expect_id(annotation, "id")
    choices = expect_choices(annotation["multi_choice"], NUM_CHOICES, NUM_CHOICES)
    answer = _expect_index(annotation["answer"], choices)
    return {
        "id": row_id,
        "video_name": of_avqa.group(0) if of_avqa else name,
        "video_id": of_avqa.group(1) if of_avqa else name,
        "start_s": float(of_avqa.group(2)) if of_avqa else 0.0,
        "question": audio_question(question),
        "video_question": question,
        "choices": choices,
        "answer": answer,
        "answer_text": choices[answer],
        "question_relation": optional_label(annotation, "question_relation"),
        "question_type": optional_label(annotation, "question_type"),
    }


def _expect_index(answer: Any, choices: list[str]) -> int:
    """The answer, if it is an index into the choices."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    expected = f"expected the index of the right choice, counted from 0: 0 to {len(choices) - 1}"
    found = f"found {answer!r}"
    if isinstance(answer, str):
        texts = [choice.strip() for choice in choices]
        letter = LETTERS.find(answer.strip(" ().").upper()) if len(answer.strip(" ().")) == 1 else -1
        if answer.strip() in texts:
            found = f"found the choice's text {answer!r}: write {texts.index(answer.strip())}"
        elif 0 <= letter < len(choices):
            found = f"found the letter {answer!r}: write {letter}"
        else:
            found = f"found the text {answer!r}"
    raise RowError(schema.ANSWER_OUT_OF_RANGE, f"answer: {expected}; {found}")


def check_answers(path: str, annotations: list[Any]) -> None:
    """
    Refuse a file whose answers count from 1: most of its rows would be built with a wrong answer. Warn where they may.

    Args:
        path (`str`): The file, for the message.
        annotations (`list`): What it holds.

    Raises:
        `InputError`: Every answer is from 1 to the number of choices, and some are that number.
    """
    pairs = [(each.get("answer"), each.get("multi_choice")) for each in annotations if isinstance(each, dict)]
    answers = [(answer, len(choices)) for answer, choices in pairs if type(answer) is int and isinstance(choices, list)]
    past = sum(answer == count for answer, count in answers)
    if len(answers) >= 2 and past and all(1 <= answer <= count for answer, count in answers):
        raise InputError(
            f"{path}: expected answers that count from 0, found answers that seem to count from 1: of {len(answers)} none is "
            f"0, and {past} are the number of choices, one more than the last index; subtract 1 from every answer"
        )
    if len(answers) >= MANY_ANSWERS and all(answer != 0 for answer, _ in answers):
        print(f"warning: {path}: none of {len(answers)} answers is 0; answers count from 0", file=sys.stderr)

"""
AVQA (Yang et al., ACM MM 2022): questions with four choices about ten-second clips of VGGSound. One annotation (val_qa.json,
id 1139):

    {"id": 1139, "video_name": "06GyG4-wONQ_000006", "video_id": 1395,
     "question_text": "How many animals are there in the video?", "multi_choice": ["3", "One", "4", "2"], "answer": 3,
     "question_relation": "Both", "question_type": "Which"}

and the row that `to_row` makes of it; a built dataset has `audio`, `duration_s` and `media_sha256` instead of `video_name`:

    {"id": "1139", "video_name": "06GyG4-wONQ_000006", "video_id": "06GyG4-wONQ", "start_s": 6.0,
     "question": "How many animals are there in the audio?", "video_question": "How many animals are there in the video?",
     "choices": ["3", "One", "4", "2"], "answer": 3, "answer_text": "2", "question_relation": "Both",
     "question_type": "Which"}

Questions about other clips in AVQA's format are read in the same way.
"""

import sys
from operator import itemgetter
from typing import Any

from sightsound.benchmarks import BREAKDOWNS, TASK_CATEGORIES, Benchmark
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.annotations import (
    Row,
    RowError,
    audio_question,
    expect_choices,
    expect_file_name,
    expect_id,
    expect_keys,
    expect_text,
    optional_label,
)
from sightsound.data.clips import VIDEO_NAME, video_name
from sightsound.data.pinned import PinnedFile
from sightsound.data.schema import LETTERS


NUM_CHOICES = 4
MIN_ANSWERS_TO_WARN = 5  # fewer answers may well lack a 0 by chance
EXPECTED_KEYS = ("id", "video_name", "question_text", "multi_choice", "answer")


def to_row(annotation: Any) -> Row:
    """
    An annotation -> its row without the audio. Choices keep their outer spaces and their duplicates.

    `video_name` is no column of the dataset; it names the clip's file. A name in AVQA's form (11-character YouTube id, `_`,
    6-digit start second, no extension) gives `video_id` and `start_s`. Any other file is used whole: `video_id` is its name
    and `start_s` is 0.
    """
    expect_keys(annotation, EXPECTED_KEYS)
    name = expect_file_name(annotation, "video_name")
    in_form = VIDEO_NAME.fullmatch(name)
    question = expect_text(annotation, "question_text")
    row_id = expect_id(annotation, "id")
    choices = expect_choices(annotation["multi_choice"], NUM_CHOICES, NUM_CHOICES)
    answer = _expect_index(annotation["answer"], choices)
    return {
        "id": row_id,
        "video_name": in_form.group(0) if in_form else name,
        "video_id": in_form.group(1) if in_form else name,
        "start_s": float(in_form.group(2)) if in_form else 0.0,
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
    Refuse a file whose answers count from 1, since most of its rows would get a wrong answer; warn where they may.

    Args:
        path (`str`): The file, for the message.
        annotations (`list`): Its content.

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
    if len(answers) >= MIN_ANSWERS_TO_WARN and all(answer != 0 for answer, _ in answers):
        print(f"warning: {path}: none of {len(answers)} answers is 0; answers count from 0", file=sys.stderr)


FRONT_MATTER = {
    "license": "other",
    "license_name": "avqa-states-none",
    "language": "en",
    "pretty_name": "avqa-audio",
    "source_datasets": ["extended|other-avqa"],
    "task_categories": TASK_CATEGORIES,
    "tags": ["audio", "audio-question-answering", "avqa", "sightsound-r1"],
}
# The licence and the language of other people's clips are unknown.
OTHER_CLIPS = {
    "license": "unknown",
    "pretty_name": "Audio questions in AVQA's format",
    "task_categories": TASK_CATEGORIES,
    "tags": ["audio", "audio-question-answering", "sightsound-r1"],
}


def describe(rows: list[Row]) -> tuple[Row, Row]:
    """Front matter and card values: whether the rows are about AVQA's clips, judged by the names of the clips."""
    num_own = sum(row["video_name"] == row["video_id"] for row in rows)
    front_matter = OTHER_CLIPS if num_own == len(rows) else FRONT_MATTER
    if 0 < num_own < len(rows):
        front_matter = FRONT_MATTER | {"license_name": "mixed", "pretty_name": "avqa-audio and other clips"}
    return front_matter, {"num_own": num_own, "num_avqa": len(rows) - num_own}


def relation_note(relations: set[str]) -> str:
    """The miniature's questions have two of AVQA's relations, with a meaning of their own."""
    if relations != {"Both", "Sound"}:
        return ""
    return 'In the miniature "Both" are clean clips (audio and video agree), "Sound" are traps (they do not).'


BENCHMARK = Benchmark(
    # The authors' own repository (AlyssaYoung/AVQA) does not hold the questions, and nobody publishes a digest: a report says
    # the sha256 of the file that was scored.
    pinned=PinnedFile("val_qa.json of AVQA, as in data/ of plnguyen2908/AVQA-viz at commit f7c00b2"),
    official_file="AVQA's train_qa.json",
    id_key="id",
    choices_key="multi_choice",
    to_row=to_row,
    text_keys={"question_text": ("video_question", "question"), "multi_choice": ("choices",)},
    check_answers=check_answers,
    features=schema.avqa_audio_features,
    clip_name=itemgetter("video_name"),
    card="dataset_avqa_audio.md",
    front_matter=FRONT_MATTER,
    describe=describe,
    split="validation",
    breakdowns=BREAKDOWNS | {"by_relation": BREAKDOWNS["by_relation"]._replace(note=relation_note)},
    video_name=video_name,
)

"""MUSIC-AVQA's test questions: the official annotations, row by row, and the closed vocabulary of their answers."""

import json
import re
from typing import Any

from sightsound.benchmarks.pinned import PinnedFile
from sightsound.data import schema
from sightsound.data.annotations import RowError, audio_question, expect_id, expect_keys, expect_text


PINNED = PinnedFile(
    "data/json_update/avqa-test.json of GeWu-Lab/MUSIC-AVQA at commit cc88095",
    "76ce24ee02fd85e28038605aedd4f62633e1335ccda96a1fcf7340b5feaf230e",
    questions=9129,
    texts_sha256="683a35a43893105a7aa03922c4e01616f6e73dee7153fe4ff5273ec8308d645a",
)
ID_KEY = "question_id"
EXPECTED_KEYS = ("video_id", "question_id", "type", "question_content", "templ_values", "anser")
PAPER_TYPES = ("Counting", "Comparative", "Temporal", "Existential")
PLACEHOLDER = re.compile(r"<[A-Za-z]+>")
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]+")  # a file's name and no path

YES_NO = ("yes", "no")
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "more than ten")
PLACES = ("indoor", "outdoor")
POSITIONS = ("left", "middle", "right")
# fmt: off
INSTRUMENTS = (
    "accordion", "acoustic_guitar", "bagpipe", "banjo", "bassoon", "cello", "clarinet", "congas", "drum", "electric_bass",
    "erhu", "flute", "guzheng", "piano", "pipa", "saxophone", "suona", "trumpet", "tuba", "ukulele", "violin", "xylophone",
)
# fmt: on
# Beginning of a question's template -> its choices; the first that fits. Together they are the official 42 answers. In the
# official data no question's answer is ever outside its group, and any of a group's answers makes sense.
CHOICES = (
    ("Is ", YES_NO),
    ("Are ", YES_NO),
    ("How many ", COUNTS),
    ("Where is the performance", PLACES),
    ("Where is ", POSITIONS),
    ("Which <Object> makes the sound ", (*POSITIONS, "simultaneously")),
    ("Which ", INSTRUMENTS),
    ("What ", INSTRUMENTS),
)
# What the benchmark is scored over: every answer that a question can have.
VOCABULARY = frozenset(answer for _, choices in CHOICES for answer in choices)


def texts_in(annotation: dict[str, Any], key: str) -> list[str]:
    """A list of texts that the official file keeps as JSON inside a string: `'["Audio", "Counting"]'`."""
    try:
        texts = json.loads(annotation[key])
    except (TypeError, ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError(schema.BAD_ANNOTATION, f"expected a list of texts, written as JSON, as {key}, found {annotation[key]!r}")
    return texts


def fill(template: str, values: list[str]) -> str:
    """Fill placeholders in order, one occurrence each: the two of "Is the <Object> louder than the <Object>?" differ."""
    holes = len(PLACEHOLDER.findall(template))
    if holes != len(values):
        raise RowError(schema.BAD_ANNOTATION, f"{holes} placeholders in {template!r}, but {len(values)} templ_values")
    remaining = iter(values)
    return PLACEHOLDER.sub(lambda _: next(remaining), template)


def choices_of(template: str) -> list[str]:
    """What can be answered to a question of this kind."""
    for beginning, choices in CHOICES:
        if template.startswith(beginning):
            return list(choices)
    raise RowError(schema.BAD_ANNOTATION, f"{template!r} is none of MUSIC-AVQA's kinds of question: its choices are unknown")


def to_row(annotation: Any) -> dict[str, Any]:
    r"""
    One annotation -> one row without its sound; texts as in the file, full-width question marks and all.

    An annotation (question_id 12):

        {"video_id": "00000093", "question_id": 12, "type": "[\"Audio\", \"Counting\"]",
         "question_content": "How many musical instruments were heard throughout the video?", "templ_values": "[]",
         "question_deleted": 0, "anser": "one"}
    """
    expect_keys(annotation, EXPECTED_KEYS)
    if not VIDEO_ID.fullmatch(str(annotation["video_id"])):
        raise RowError(
            schema.BAD_ANNOTATION, f"video_id {annotation['video_id']!r} is not the name of a video such as 00000093"
        )
    kinds = texts_in(annotation, "type")
    if len(kinds) != 2:
        raise RowError(schema.BAD_ANNOTATION, f"expected modality and type as type, found {kinds!r}")
    modality, question_type = kinds
    template = expect_text(annotation, "question_content")
    question = fill(template, texts_in(annotation, "templ_values"))
    choices, answer = choices_of(template), annotation["anser"]
    if answer not in choices:
        raise RowError(schema.ANSWER_NOT_A_CHOICE, f"{answer!r} is none of {', '.join(choices)}")
    return {
        "id": expect_id(annotation, "question_id"),
        "video_id": str(annotation["video_id"]),
        "start_s": 0.0,
        "question": audio_question(question),
        "video_question": question,
        "choices": choices,
        "answer": choices.index(answer),
        "answer_text": answer,
        "question_relation": modality,
        "question_type": question_type,
        "modality": modality,
        "template": template,
        "in_paper": question_type in PAPER_TYPES,
    }

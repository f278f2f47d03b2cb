"""What an annotation has to be before its clip is opened: checks that the builders of audio datasets share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import schema


Row = dict[str, Any]

# The longest question of AVQA, MUSIC-AVQA and MMAU has 255 characters. Text a hundred times as long is no question, and
# would crowd the clip out of any model's context.
MAX_TEXT_CHARACTERS = 25_000


class RowError(Exception):
    """An annotation that cannot become a row: its outcome in the ledger, and why."""

    def __init__(self, outcome: str, detail: str):
        super().__init__(detail)
        self.outcome = outcome


def expect_keys(annotation: Any, keys: Sequence[str]) -> Row:
    """The annotation, if it is an object with these keys."""
    if not isinstance(annotation, dict):
        raise RowError(schema.BAD_ANNOTATION, f"expected an object, found {type(annotation).__name__}")
    missing = [key for key in keys if key not in annotation]
    if missing:
        raise RowError(schema.BAD_ANNOTATION, f"lacks {', '.join(missing)}")
    return annotation


def expect_id(annotation: Row, key: str) -> str:
    """A row's id as text: AVQA and MUSIC-AVQA number their questions."""
    value = annotation[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(schema.BAD_ANNOTATION, f"expected text or a number as {key}, found {value!r}")
    return str(value)


def expect_text(annotation: Row, key: str) -> str:
    """Text that is not blank, byte for byte."""
    value = annotation[key]
    if not isinstance(value, str) or not value.strip():
        raise RowError(schema.BAD_ANNOTATION, f"expected text as {key}, found {value!r}")
    return value


def expect_choices(value: Any, fewest: int, most: int) -> list[str]:
    """A list of choices, byte for byte; a number is read as its text."""
    wanted = str(most) if fewest == most else f"{fewest} to {most}"
    if not isinstance(value, list) or not fewest <= len(value) <= most:
        raise RowError(schema.WRONG_CHOICE_COUNT, f"expected {wanted} choices, found {value!r}")
    for choice in value:
        if isinstance(choice, bool) or not isinstance(choice, str | int | float) or not str(choice).strip():
            raise RowError(schema.BAD_ANNOTATION, f"expected text as every choice, found {choice!r}")
    return [str(choice) for choice in value]


def optional_label(annotation: Row, key: str) -> str:
    """A label that some annotations lack; nothing, or null, is the empty text."""
    value = annotation.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(schema.BAD_ANNOTATION, f"expected text as {key}, found {value!r}")
    return value or ""


def audio_question(video_question: str) -> str:
    """R1-AQA's rule: every "video" becomes "audio", nothing else changes."""
    return video_question.replace("video", "audio")


def check_text(row: Row) -> None:
    """Whatever column it stands in: text can be too long for a question, or no text at all."""
    for name, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if len(text) > MAX_TEXT_CHARACTERS:
                told = f"{name} is {len(text)} characters long, expected at most {MAX_TEXT_CHARACTERS}"
                raise RowError(schema.BAD_ANNOTATION, told)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                told = f"{name} holds half of a UTF-16 pair, which no file can store as text"
                raise RowError(schema.BAD_ANNOTATION, told) from error

"""Read annotation files, and check annotations before their clips are opened. All builders of audio datasets share this."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from sightsound.cli import InputError, read_json
from sightsound.data import schema
from sightsound.data.schema import LETTERS, RowError


Row = dict[str, Any]

WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
# The longest question of AVQA, MUSIC-AVQA and MMAU has 255 characters. Text a hundred times as long is no question, and
# would leave no room for the clip in a model's context.
MAX_TEXT_CHARACTERS = 25_000
# "(A) Man", "A. Man": choices with the letter of a prompt. The space is needed: "A:maj/1" is a choice without a letter.
LETTERED = re.compile(r"\s*(\(?)([A-Za-z])([.:)])\s+(?=\S)")


def read_annotations(path: str, official_file: str) -> list[Any]:
    """
    The annotations in a file: a list in JSON, an object that holds one such list, or one object a line (JSON lines).

    Args:
        path (`str`): The file.
        official_file (`str`): The file whose format is expected, for messages.

    Raises:
        `InputError`: It cannot be read, holds no list of annotations, or an empty one.
    """
    content = _json_lines(path)
    if content is None:
        content = read_json(path)
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items() if isinstance(value, list) and _are_objects(value)}
        if len(lists) != 1:
            keys = ", ".join(map(repr, list(content)[:5])) or "none"
            found = f"an object with the keys {keys}{', ...' if len(content) > 5 else ''}"
            raise InputError(f"{path}: expected a list of annotations as in {official_file}, found {found}")
        [content] = lists.values()
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of annotations as in {official_file}, found {type(content).__name__}")
    if not content:
        raise InputError(f"{path} holds no annotations; was its list written to the end?")
    return content


def _are_objects(value: list[Any]) -> bool:
    return all(isinstance(each, dict) for each in value)


def _json_lines(path: str) -> list[Any] | None:
    """The objects of a file that holds one per line; None for every other file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            if not file.readline().startswith("{"):
                return None
            file.seek(0)
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, RecursionError):  # `read_json` says what is wrong with it
        return None
    is_one_object = len(rows) == 1 and not path.endswith((".jsonl", ".ndjson"))
    return None if is_one_object or not _are_objects(rows) else rows


def expect_keys(annotation: Any, keys: Sequence[str]) -> Row:
    """The annotation, if it is an object with these keys."""
    if not isinstance(annotation, dict):
        raise RowError(schema.BAD_ANNOTATION, f"expected an object, found {type(annotation).__name__}")
    missing = [key for key in keys if key not in annotation]
    if missing:
        found = ", ".join(map(str, annotation)) or "nothing"
        raise RowError(schema.BAD_ANNOTATION, f"lacks {', '.join(missing)}; its fields are {found}")
    return annotation


def expect_id(annotation: Row, key: str) -> str:
    """A row's id as text. AVQA and MUSIC-AVQA have numbers."""
    value = annotation[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(schema.BAD_ANNOTATION, f"expected text or a number as {key}, found {value!r}")
    return str(value)


def expect_text(annotation: Row, key: str) -> str:
    """Text that is not blank, unchanged."""
    value = annotation[key]
    if not isinstance(value, str) or not value.strip():
        raise RowError(schema.BAD_ANNOTATION, f"expected text as {key}, found {value!r}")
    return value


def expect_file_name(annotation: Row, key: str) -> str:
    """The name of a file below a folder, unchanged. It must not lead out of the folder or hold control characters."""
    name = expect_text(annotation, key)
    parts = re.split(r"[/\\]", name)
    if name != name.strip("/\\") or ".." in parts or WINDOWS_DRIVE.match(name) or CONTROL_CHARACTERS.search(name):
        expected = "the name of a file in the media folder, with or without its extension"
        raise RowError(schema.BAD_ANNOTATION, f"expected {expected}, as {key}, found {name!r}")
    return name


def without_letters(choices: Sequence[str]) -> list[str]:
    """Remove the letters before choices, if all have one, in order and in one style. A prompt adds its own letters."""
    found = [LETTERED.match(choice) for choice in choices]
    matches = [match for match in found if match is not None]
    styles = {(match[1], match[2].isupper(), match[3]) for match in matches}
    letters = "".join(match[2] for match in matches).upper()
    if len(matches) < len(choices) or len(styles) != 1 or letters != LETTERS[: len(choices)]:
        return list(choices)
    return [match.string[match.end() :] for match in matches]


def expect_choices(value: Any, fewest: int, most: int) -> list[str]:
    """A list of choices as text, unchanged except for letters before all of them (see `without_letters`)."""
    wanted = str(most) if fewest == most else f"{fewest} to {most}"
    if not isinstance(value, list) or not fewest <= len(value) <= most:
        raise RowError(schema.WRONG_CHOICE_COUNT, f"expected {wanted} choices, found {value!r}")
    for choice in value:
        if isinstance(choice, bool) or not isinstance(choice, str | int | float) or not str(choice).strip():
            raise RowError(schema.BAD_ANNOTATION, f"expected text as every choice, found {choice!r}")
    return without_letters([str(choice) for choice in value])


def expect_answer_text(annotation: Row, choices_key: str, answer_key: str) -> tuple[list[str], int]:
    """
    The choices of an annotation whose answer is a text, and the index of the first choice that equals the answer.

    Raises:
        `RowError`: There are no usable choices, or the answer is none of them.
    """
    choices, answer = expect_choices(annotation[choices_key], 2, len(LETTERS)), annotation[answer_key]
    as_given = [str(choice) for choice in annotation[choices_key]]
    if answer in as_given:  # with its letter, where the choices have theirs
        answer = choices[as_given.index(answer)]
    if answer not in choices:
        raise RowError(schema.ANSWER_NOT_A_CHOICE, f"{answer!r} is none of {choices!r}")
    return choices, choices.index(answer)


def optional_label(annotation: Row, key: str) -> str:
    """A label that some annotations lack. A missing one, or null, becomes the empty text."""
    value = annotation.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(schema.BAD_ANNOTATION, f"expected text as {key}, found {value!r}")
    return value or ""


def audio_question(video_question: str) -> str:
    """R1-AQA's rule: every "video" becomes "audio"."""
    return video_question.replace("video", "audio")


def check_text(row: Row) -> None:
    """Raise `RowError` where text in any column is too long, or cannot be stored as UTF-8."""
    for name, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if len(text) > MAX_TEXT_CHARACTERS:
                detail = f"{name} is {len(text)} characters long, expected at most {MAX_TEXT_CHARACTERS}"
                raise RowError(schema.BAD_ANNOTATION, detail)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                detail = f"{name} holds half of a UTF-16 pair, which no file can store as text"
                raise RowError(schema.BAD_ANNOTATION, detail) from error

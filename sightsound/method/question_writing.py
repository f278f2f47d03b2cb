"""
Questions that a teacher writes about what must be heard in a video that it sees without sound.

The teacher is asked for questions of certain types (`TYPES`) and replies with JSON of one form (`reply_schema`). `read_reply`
reads a reply strictly: each question that was asked for becomes a `Slot`, with the question or with the outcome that says why
there is none. `question_filters.py` then decides which questions are kept.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.annotations import without_letters
from sightsound.data.parquet import storable
from sightsound.method.answer_reading.choices import bare_words


NUM_CHOICES = 4

# Type of a question -> what the prompt says about it.
TYPES = {
    "which": "which of the four is heard",
    "first": "which of the four is heard first",
    "last": "which of the four is heard last",
    "how_many": "how many sounds are heard, or how often one is heard",
    "where": "where one is, or where a sound comes from, as the sound tells it",
    "why": "why something is heard: what happens that makes the sound",
    "compare": "which of two sounds is heard more often, longer or louder",
}
# Type of a question -> its share of the questions that are asked for, without `--types`.
SHARES = {"which": 0.3, "first": 0.15, "last": 0.15, "how_many": 0.15, "where": 0.1, "why": 0.1, "compare": 0.05}

MAX_REPLY_CHARACTERS = 100_000
MAX_QUESTION_CHARACTERS, MAX_CHOICE_CHARACTERS = 400, 150
KEYS = ("type", "question", "choices", "answer")

# Outcomes of a question that was asked for; those of requests (`refused`, `server_error`, ...) are in `schema`.
CUT, NOT_JSON, WRONG_FORM = "cut", "not_json", "wrong_form"
MISSING_QUESTION, EXTRA_QUESTION = "missing_question", "extra_question"
BAD_TEXT, UNKNOWN_TYPE = "bad_text", "unknown_type"
READING_OUTCOMES = {
    CUT: "the reply was cut by the token limit",
    NOT_JSON: "the reply is not one JSON value",
    WRONG_FORM: "the reply, or this question of it, does not have the fields that were asked for, with their types",
    MISSING_QUESTION: "the reply has fewer questions than were asked for",
    EXTRA_QUESTION: "the reply has more questions than were asked for",
    UNKNOWN_TYPE: "the question is of a type that was not offered",
    BAD_TEXT: "the question or a choice is empty, too long, or holds characters that are no text",
    schema.WRONG_CHOICE_COUNT: f"not {NUM_CHOICES} choices",
    schema.ANSWER_NOT_A_CHOICE: "the teacher's answer is none of its choices",
}

_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\r?\n(.*?)\s*```", re.DOTALL)
# Control characters except line breaks and tabs, half surrogates, the replacement character of broken text, and noncharacters.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd\ufdd0-\ufdef\ufffe\uffff]")
_LETTER = re.compile(r"\(?([A-Da-d])[.):]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Da-d])[.):]\s*(.+)", re.DOTALL)


class WrittenQuestion(NamedTuple):
    """
    A question as the teacher wrote it.

    Args:
        type (`str`): One of `TYPES`.
        text (`str`): In its "video" wording.
        choices (`tuple[str]`): Four, without letters.
        answer (`int`): Index of the teacher's own answer.
    """

    type: str
    text: str
    choices: tuple[str, ...]
    answer: int


class Slot(NamedTuple):
    """A question that was asked for: the question, or the outcome that says why there is none, and what was seen."""

    question: WrittenQuestion | None
    outcome: str | None = None
    detail: str | None = None


def parse_shares(given: Sequence[str] | None) -> dict[str, float]:
    """
    The shares of the types, from `--types which=0.5 first=0.5`; they need not add up to 1.

    They are in the order of `TYPES`, whatever the order of the flag: `draw_types` depends on it, and a rerun with the same
    shares has to draw the same types.

    Raises:
        `InputError`: A type is unknown, or a share is no positive number.
    """
    if not given:
        return dict(SHARES)
    shares: dict[str, float] = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if name not in TYPES or not 0 < share < float("inf"):
            raise InputError(f"--types {each}: expected TYPE=SHARE, such as which=0.5, with a type of {', '.join(TYPES)}")
        if name in shares:
            raise InputError(f"--types names {name} twice; give it one share")
        shares[name] = share
    return {name: shares[name] for name in TYPES if name in shares}


def draw_types(segment_id: str, count: int, shares: Mapping[str, float], seed: int) -> list[str]:
    """The types that are asked for about a segment. They depend on the segment alone, and not on its place or rank."""
    return random.Random(f"{seed}/{segment_id}").choices(list(shares), list(shares.values()), k=count)


def write_prompt(prompt: str, types: Sequence[str]) -> str:
    """The teacher's prompt, with the types that are asked for."""
    lines = "\n".join(f"{i}. {name}: {TYPES[name]}" for i, name in enumerate(types, start=1))
    return prompt.format(num_questions=len(types), types=lines)


def reply_schema(shares: Mapping[str, float]) -> dict[str, Any]:
    """
    The form of a reply, as JSON schema for a server's `response_format`.

    Without the number of questions and choices: the strict mode of some servers refuses `minItems`. `read_reply` counts them.
    """
    text = {"type": "string"}
    question = {
        "type": {"type": "string", "enum": list(shares)},
        "question": text,
        "choices": {"type": "array", "items": text},
        "answer": text,
    }
    each = {"type": "object", "properties": question, "required": list(KEYS), "additionalProperties": False}
    questions = {"questions": {"type": "array", "items": each}}
    return {"type": "object", "properties": questions, "required": ["questions"], "additionalProperties": False}


def read_reply(text: str, finish_reason: str, count: int, types: Mapping[str, float]) -> list[Slot]:
    """
    Read a reply strictly.

    The JSON may stand after a closed `<think>` block, and inside one code fence, whatever is around the fence. Nothing is
    repaired: trailing commas, single quotes, comments, text around bare JSON, further keys and values of other types (numbers
    as choices, an index as answer) are outcomes.

    Args:
        count (`int`): How many questions were asked for.
        types (`Mapping`): The types that were offered.

    Returns:
        `list[Slot]`: `count` slots, then one for each further question of the reply.
    """
    if finish_reason == "length":
        return [Slot(None, CUT, _shown(text[-80:]))] * count
    if finish_reason in ("refusal", "content_filter"):
        return [Slot(None, schema.REFUSED, _shown(text))] * count
    try:
        reply = _load(text)
    except (ValueError, RecursionError) as error:
        return [Slot(None, NOT_JSON, f"{str(error)[:120] or type(error).__name__}: {_shown(text)}")] * count
    if not isinstance(reply, dict) or reply.keys() != {"questions"} or not isinstance(reply["questions"], list):
        return [Slot(None, WRONG_FORM, f'expected {{"questions": [...]}}, found {_shown(reply)}')] * count
    written = reply["questions"]
    slots = [_read_question(each, types) for each in written[:count]]
    slots += [Slot(None, MISSING_QUESTION, f"the reply has {len(written)} of {count}")] * (count - len(slots))
    return slots + [Slot(None, EXTRA_QUESTION, _shown(each)) for each in written[count:]]


def _load(text: str) -> Any:
    """The JSON of a reply. Duplicate keys, NaN and Infinity are no JSON of ours."""
    body = text.rpartition("</think>")[2].strip("\ufeff \t\r\n")
    if len(body) > MAX_REPLY_CHARACTERS:
        raise ValueError(f"{len(body)} characters, expected at most {MAX_REPLY_CHARACTERS}")
    fenced = _FENCE.findall(body)
    if len(fenced) == 1 and body.count("```") == 2:
        body = fenced[0]

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("an object has a key twice")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(body, object_pairs_hook=unique, parse_constant=refuse)


def _read_question(value: Any, types: Mapping[str, float]) -> Slot:
    if not isinstance(value, dict) or value.keys() != set(KEYS):
        return Slot(None, WRONG_FORM, f"expected an object with {', '.join(KEYS)}, found {_shown(value)}")
    kind, question, choices, answer = (value[key] for key in KEYS)
    is_list = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not is_list or not all(isinstance(each, str) for each in (kind, question, answer)):
        return Slot(None, WRONG_FORM, f"expected text, and a list of text as choices, found {_shown(value)}")
    if kind not in types:
        return Slot(None, UNKNOWN_TYPE, f"expected one of {', '.join(types)}, found {_shown(kind)}")
    if len(choices) != NUM_CHOICES:
        return Slot(None, schema.WRONG_CHOICE_COUNT, f"expected {NUM_CHOICES} choices, found {_shown(choices)}")
    question, *plain = (" ".join(each.split()) for each in (question, *without_letters(choices)))
    if problem := _problem_of_text(question, MAX_QUESTION_CHARACTERS):
        return Slot(None, BAD_TEXT, f"the question {problem}: {_shown(question)}")
    for choice in plain:
        if problem := _problem_of_text(choice, MAX_CHOICE_CHARACTERS):
            return Slot(None, BAD_TEXT, f"a choice {problem}: {_shown(choices)}")
    index = _index_of(answer, plain)
    if index is None:
        return Slot(None, schema.ANSWER_NOT_A_CHOICE, f"{_shown(answer)} is none of {_shown(choices)}")
    return Slot(WrittenQuestion(kind, question, tuple(plain), index))


def _problem_of_text(text: str, longest: int) -> str | None:
    if not any(character.isalnum() for character in text):
        return "has no letter or digit"
    if len(text) > longest:
        return f"is {len(text)} characters long, expected at most {longest}"
    if _NO_TEXT.search(text):
        return "holds characters that are no text"
    return None


def _index_of(answer: str, choices: Sequence[str]) -> int | None:
    """
    The choice that the answer names by its text, its letter, or both; None where it is none of them.

    Stricter than the grader of answers: this one is the teacher's own, and it was asked to copy a choice.
    """
    stripped = " ".join(answer.split())
    words = [bare_words(choice) for choice in choices]
    if named := [i for i, each in enumerate(words) if each == bare_words(stripped)]:
        return named[0]
    if letter := _LETTER.fullmatch(stripped):
        return ord(letter[1].upper()) - ord("A")
    if both := _LETTER_AND_TEXT.fullmatch(stripped):
        index = ord(both[1].upper()) - ord("A")
        return index if words[index] == bare_words(both[2]) else None
    return None


def _shown(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:
        text = "a value that is nested too deep to show"
    return storable(" ".join(text[:400].split())[:160])

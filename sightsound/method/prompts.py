"""
The prompts, and the forms that they ask for.

Every prompt is a text file in `prompt_texts/` with named fields in braces: `{question}`, `{choices}` (lettered, one per line)
and `{think}` (the reasoning of a trace), `{claim}` and `{claims}`; where the teacher writes the questions, `{num_questions}`
and `{types}`. A change to one of these files is a new `PROMPT_VERSION`. Another file can be given to `questions.py`,
`traces.py`, `verdicts.py` and `python -m evaluation run` with `--prompt_file`. Either way, all that a prompt generates records
which one it was.

Reasoning goes inside `<think></think>`, the choice inside `<answer></answer>` (paper, section 3.3). The teacher's reasoning
opens with the sounds in order, "I hear a dog, then a bell.": so `heard_sounds` can read the claims of a trace, and compare
them with what a checker hears, without a second language model.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from sightsound.cli import InputError
from sightsound.data.schema import LETTERS


PROMPT_VERSION = "1"

# The paper publishes none of its prompts. These are ours: see docs/deviations.md.
_TEXTS = Path(__file__).with_name("prompt_texts")


def _text(name: str) -> str:
    return (_TEXTS / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


COT_PROMPT = _text("cot")
DIRECT_PROMPT = _text("direct")
# The paper's audio-focused prompt for the teacher, and two baselines of its Table 1: the trigger of Kojima et al. 2022 (arXiv
# 2205.11916), and the same about the sound.
TEACHER_PROMPT = _text("audio_focused")
ZERO_SHOT_COT_PROMPT = _text("zero_shot_cot")
ZERO_SHOT_AUDIO_COT_PROMPT = _text("zero_shot_audio_cot")
# CoT-Distill: the student reads the reasoning of a teacher's trace, without its answer.
COT_DISTILL_PROMPT = _text("cot_distill")
CHECKER_YES_NO = _text("checker_yes_no")
CHECKER_TRANSCRIPT = _text("checker_transcript")
CHECKER_CLAIM = _text("checker_claim")
# The teacher's prompt again, with the claims that the checker found true.
REWRITE_PROMPT = _text("rewrite")
# The teacher writes questions about a silent video; see `question_writing.py`.
WRITE_QUESTIONS_PROMPT = _text("write_questions")
# A judge scores reasoning by the rubric of its question; see `rubrics.py`.
JUDGE_RUBRIC = _text("judge_rubric")

# `traces.py --prompt`; the first is the default.
TRACE_PROMPTS = {
    "audio_focused": TEACHER_PROMPT,
    "zero_shot_cot": ZERO_SHOT_COT_PROMPT,
    "zero_shot_audio_cot": ZERO_SHOT_AUDIO_COT_PROMPT,
}

QUESTION_FIELDS = ("question", "choices")
WRITE_FIELDS = ("num_questions", "types")
JUDGE_FIELDS = ("question", "answer", "reference", "reasoning", "predicted", "criteria")


class Prompt(NamedTuple):
    """
    A prompt and what is recorded of it.

    Args:
        text (`str`): With its fields in braces.
        version (`str`): `PROMPT_VERSION`, or `<file stem>@<first 12 digits of the file's sha256>` of a file that a user gave.
        sha256 (`str`, *optional*): Of that file.
    """

    text: str
    version: str = PROMPT_VERSION
    sha256: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What a stage records, so that a rerun with another prompt is refused."""
        return {"prompt_version": self.version} | ({"prompt_sha256": self.sha256} if self.sha256 else {})


def choose_prompt(file: str | None, default: str, fields: Collection[str]) -> Prompt:
    """
    The prompt that `--prompt_file` names, or else the default.

    Args:
        file (`str`, *optional*): Path of a UTF-8 text. Its last line break is not part of the prompt.
        default (`str`): Text of the default prompt.
        fields (`Collection[str]`): The fields that the text must have, and the only ones.

    Raises:
        `InputError`: The file cannot be read, is empty, is not UTF-8, or lacks a field or has another one.
    """
    if file is None:
        return Prompt(default)
    try:
        content = Path(file).read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except OSError as error:
        raise InputError(f"--prompt_file {file} cannot be read ({error.strerror}); give the path of a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt_file {file} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise InputError(f"--prompt_file {file} is empty; write a prompt{_with_fields(fields)}")
    try:
        parts = [part for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise InputError(f"--prompt_file {file}: {error}; write a brace that is no field twice, as {{{{ and }}}}") from error
    # "{name!r:>9}" has the parts "name", ">9" and "r": only a name is a field.
    found = [f"{name}{'!' * bool(how)}{how or ''}{':' * bool(form)}{form}" for _, name, form, how in parts]
    if unknown := [name for name in found if name not in fields]:
        raise InputError(
            f"--prompt_file {file} has the unknown field {{{unknown[0]}}}; here a prompt is{_with_fields(fields)}, and a brace "
            "that is no field is written twice, as {{ and }}"
        )
    if missing := [name for name in fields if name not in found]:
        raise InputError(f"--prompt_file {file} lacks the field {{{missing[0]}}}; write a prompt{_with_fields(fields)}")
    digest = hashlib.sha256(content).hexdigest()
    return Prompt(text, f"{Path(file).stem}@{digest[:12]}", digest)


def _with_fields(fields: Collection[str]) -> str:
    return f" with {' and '.join(f'{{{name}}}' for name in fields)}" if fields else " without fields"


def lettered(choices: Sequence[str]) -> str:
    """Choices one per line: `A. dog`, `B. bell`, ..."""
    return "\n".join(f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False))


def question_text(question: str, choices: Sequence[str], prompt: str, **fields: str) -> str:
    """
    A prompt with a multiple-choice question filled in.

    Args:
        prompt (`str`): One of the texts above, or the text of a `Prompt`.
        fields: Its other fields: `think`.
    """
    return prompt.format(question=question.strip(), choices=lettered(choices), **fields)


def user_message(text: str, *media: str) -> list[dict]:
    """
    A one-turn conversation.

    Args:
        text (`str`): The user's text.
        media (`str`): Kinds of the clips before the text: `"audio"`, `"video"`.
    """
    return [{"role": "user", "content": [*({"type": kind} for kind in media), {"type": "text", "text": text}]}]


def with_audio(messages: Sequence[dict]) -> list[dict]:
    """
    Put an audio part before the text of the user's turn of stored messages.

    Published rows hold plain strings beside an `audio` column. Arrow fills every absent key of a stored content part with None,
    and a template that tests `'audio' in content` renders such a part as one more clip.
    """
    out = []
    for message in messages:
        text = {"type": "text", "text": message["content"]}
        out.append({"role": message["role"], "content": [{"type": "audio"}, text] if message["role"] == "user" else [text]})
    return out


def render_trace(think: str, answer: str) -> str:
    """The form of a trace."""
    return f"<think>{think}</think><answer>{answer}</answer>"


def open_reasoning(text: str) -> str:
    """Add the `<think>` that is missing where the chat template wrote it, at the end of the prompt."""
    head, closing, _ = text.partition("</think>")
    return f"<think>{text}" if closing and "<think>" not in head else text


def render_label(answer: str) -> str:
    """The target of the label arm: an answer without reasoning."""
    return f"<answer>{answer}</answer>"


# "I hear a dog, then a bell." up to the end of the sentence; reasoning may follow it.
_HEARD = re.compile(r"\bI (?:can )?hear\s+(.+?)\s*(?:[.!]|$)", re.IGNORECASE | re.DOTALL)
_BETWEEN_SOUNDS = re.compile(r"\s*(?:,\s*)?(?:\band then\b|\bthen\b|\band\b|\bbut\b|,)\s*", re.IGNORECASE)
# "no bell", "not a bell", "nothing else": the text names these sounds and says that they are not heard.
_NOT_HEARD = re.compile(r"^(?:no|not|nor|neither|nothing|none|silence|without)\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:a|an|the)\s+", re.IGNORECASE)


def heard_sounds(text: str) -> list[str] | None:
    """
    The sounds that a text claims, in order, lower-cased and without articles: `["dog", "bell"]`.

    Returns:
        `list[str]` or `None`: `[]` for "I hear nothing.", `None` when the text makes no such claim.
    """
    found = _HEARD.search(text)
    if found is None:
        return None
    sounds = [_ARTICLE.sub("", part.strip()).lower() for part in _BETWEEN_SOUNDS.split(found.group(1))]
    return [sound for sound in sounds if sound and not _NOT_HEARD.match(sound)]

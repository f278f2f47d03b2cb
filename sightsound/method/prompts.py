"""
Every prompt of the project. A change to any text here is a new `PROMPT_VERSION`: it is recorded with all that is generated.

Choices carry letters, one per line. Reasoning goes inside `<think></think>`, the choice inside `<answer></answer>` (paper,
section 3.3). Reasoning opens with the sounds in order, "I hear a dog, then a bell.", so that the claims of a trace can be
compared with what a checker hears without a second language model (`heard_sounds`).
"""

import re
from collections.abc import Sequence

from sightsound.data.schema import LETTERS


PROMPT_VERSION = "1"


ANSWER_FORMAT = "then give one choice inside <answer></answer>."

# The paper publishes none of its prompts. These are ours: see README, "Deviations from the paper".
COT_INSTRUCTION = f"Think about what you hear inside <think></think>, {ANSWER_FORMAT}"
DIRECT_INSTRUCTION = "Give one choice inside <answer></answer>."
TEACHER_INSTRUCTION = (
    'The video is silent: infer its sound. Inside <think></think> start with "I hear", list the sounds in order and '
    f"reason about them alone, {ANSWER_FORMAT}"
)
# The baselines of the paper's Table 1: the trigger of Kojima et al. 2022 (arXiv 2205.11916), and the same about the sound.
ZERO_SHOT_COT_INSTRUCTION = f"Let's think step by step. Write your reasoning inside <think></think>, {ANSWER_FORMAT}"
ZERO_SHOT_AUDIO_COT_INSTRUCTION = (
    "Let's think step by step about the sounds that can be heard. Write your reasoning inside <think></think>, " + ANSWER_FORMAT
)
# CoT-Distill: the reasoning of a teacher's trace, without its answer, in the student's prompt.
COT_DISTILL_INSTRUCTION = (
    "Someone who saw the video without its sound wrote about the sound:\n{think}\nListen, use what fits, " + ANSWER_FORMAT
)
# What traces can be asked for with; the first is the paper's audio-focused prompt.
TRACE_INSTRUCTIONS = {
    "audio_focused": TEACHER_INSTRUCTION,
    "zero_shot_cot": ZERO_SHOT_COT_INSTRUCTION,
    "zero_shot_audio_cot": ZERO_SHOT_AUDIO_COT_INSTRUCTION,
}
CHECKER_YES_NO = (
    "A listener wrote about this audio:\n{think}\nIs every sound that the listener claims really heard? Answer yes or no."
)
CHECKER_TRANSCRIPT = 'List the sounds in order, starting with "I hear".'


def lettered(choices: Sequence[str]) -> str:
    """Choices one per line: `A. dog`, `B. bell`, ..."""
    return "\n".join(f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False))


def question_text(question: str, choices: Sequence[str], instruction: str) -> str:
    """The user's text for a multiple-choice question, under one of the instructions above."""
    return f"{question.strip()}\n{lettered(choices)}\n{instruction}"


def user_message(text: str, *media: str) -> list[dict]:
    """
    A one-turn conversation.

    Args:
        text (`str`): What the user says.
        media (`str`): The kinds of the clips that precede the text: `"audio"`, `"video"`.
    """
    return [{"role": "user", "content": [*({"type": kind} for kind in media), {"type": "text", "text": text}]}]


def with_audio(messages: Sequence[dict]) -> list[dict]:
    """
    Give the user turn of stored messages (string contents) an audio part before its text.

    Published rows hold plain strings beside an `audio` column: content parts stored in Arrow come back with every absent
    key filled with None, and a student's template that tests `'audio' in content` renders those as extra clips.
    """
    out = []
    for message in messages:
        text = {"type": "text", "text": message["content"]}
        out.append({"role": message["role"], "content": [{"type": "audio"}, text] if message["role"] == "user" else [text]})
    return out


def render_trace(think: str, answer: str) -> str:
    """The form every trace has."""
    return f"<think>{think}</think><answer>{answer}</answer>"


def open_reasoning(text: str) -> str:
    """Add the `<think>` of reasoning that ends without one: the chat template wrote it, as the end of the prompt."""
    head, closing, _ = text.partition("</think>")
    return f"<think>{text}" if closing and "<think>" not in head else text


def render_label(answer: str) -> str:
    """The target of the label-only arm: an answer without reasoning."""
    return f"<answer>{answer}</answer>"


# "I hear a dog, then a bell." up to the end of the sentence; reasoning may follow it.
_HEARD = re.compile(r"\bI (?:can )?hear\s+(.+?)\s*(?:[.!]|$)", re.IGNORECASE | re.DOTALL)
_BETWEEN_SOUNDS = re.compile(r"\s*(?:,\s*)?(?:\band then\b|\bthen\b|\band\b|\bbut\b|,)\s*", re.IGNORECASE)
# "no bell", "not a bell", "nothing else": named, and not heard.
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

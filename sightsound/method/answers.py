"""
The one grader of the project: extract the answer, match it to a choice, grade it.

The order is the paper's (Table 1): first an option letter; without one the text is aligned to a choice, exactly where that is
possible and else to the most similar choice. When no choice is similar enough, the question is *unanswered*. That is not the
same as wrong, and the grader never guesses. The result says how a match was made.

The parts are in `answer_reading/`: `sections` finds the part of an output that answers, `marks` removes markup, `statements`
finds the final statement in it by the patterns of `cues`, and `claims` reads the choice in that statement. `choices` finds the
choices that a text names or denies, and `similarity` the choice that it resembles.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from sightsound.data.schema import LETTERS
from sightsound.method.answer_reading.choices import forms_of, plain
from sightsound.method.answer_reading.sections import extract_answer_text, extract_think
from sightsound.method.answer_reading.statements import read_statement


__all__ = [
    "Answer",
    "extract_answer_text",
    "extract_answer_texts",
    "extract_think",
    "has_trace_format",
    "is_correct",
    "match_choice",
    "parse_answer",
]

_TRACE = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)+</think>\s*<answer>(?:(?!</?think>|</?answer>).)+</answer>\s*", re.DOTALL
)
# Most answers have one of these forms, which need no further reading: "B", "(B)", "B.", "B. bell", "(B) bell". Articles,
# pronouns and lists of letters do not match.
_LETTER_FORM = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):]?)(?:$| +(?=\S))")
_SENTENCE_FORM = re.compile(r"the (?:correct |final )?answer is (.{1,200}?)\.?")


class Answer(NamedTuple):
    """
    An extracted answer.

    Args:
        index (`int` or `None`): Of the choice; None when the question is unanswered.
        matched_by (`str`): `"letter"`, `"choice_text"`, `"similarity"` or `"none"`.
        text (`str`): The text that was matched.
    """

    index: int | None  # type: ignore[assignment]  # hides `tuple.index`, which nothing here needs
    matched_by: str
    text: str


def extract_answer_texts(outputs: Sequence[str]) -> list[str]:
    """
    `extract_answer_text` of every output that a metric scores.

    Raises:
        `ValueError`: There are no outputs, or one is None, which may be an empty answer or a lost one.
    """
    if not outputs:
        raise ValueError("there are no predictions to score")
    if None in outputs:
        raise ValueError(f"prediction {outputs.index(None)} is None; give an empty text where nothing was answered")
    return [extract_answer_text(output) for output in outputs]


def match_choice(text: str, choices: Sequence[str]) -> Answer:
    """
    Match an answer's text to one of the choices.

    Args:
        text (`str`): From `extract_answer_text`.
        choices (`Sequence[str]`): At most 26.

    Returns:
        `Answer`: `index` is None when the text decides for no choice, or for several.
    """
    if not text:
        return Answer(None, "none", text)
    forms = forms_of(tuple(choices))
    if len(text) == 1 and "A" <= text <= "Z" and ord(text) - ord("A") < len(choices):
        return Answer(forms.first[ord(text) - ord("A")], "letter", text)
    exact = plain(text)
    # Choices come before letters, because the chord "D:maj/M3" is not the letter D. A single letter is always a letter.
    index = forms.by_plain.get(exact)
    if index is not None and (len(exact) > 1 or not exact.isalpha()):
        return Answer(index, "choice_text", text)
    if letter := _LETTER_FORM.match(text):
        index = LETTERS.index(letter.group(1) or letter.group(2))
        if index < len(choices):
            rest = plain(text[letter.end() :])
            if not rest or rest == forms.plains[index]:
                # The first of equal choices, as when matched by text: then traces that say B and D for one text agree.
                return Answer(forms.first[index], "letter", text)
    sentence = _SENTENCE_FORM.fullmatch(exact) if exact.startswith("the ") else None
    index = forms.by_plain.get(sentence.group(1) if sentence else exact.removesuffix("."))
    if index is not None and (len(forms.plains[index]) > 1 or not forms.plains[index].isalpha()):
        return Answer(index, "choice_text", text)
    if (index := forms.nearly(exact)) is not None:
        return Answer(index, "similarity", text)
    found = read_statement(text, forms)
    return Answer(found.choice, found.matched_by, text)


def parse_answer(output: str, choices: Sequence[str]) -> Answer:
    """Extract and match in one step."""
    return match_choice(extract_answer_text(output), choices)


def is_correct(answer: Answer, gold: int, choices: Sequence[str]) -> bool:
    """Whether the choice is the gold one. Some AVQA rows list the gold text twice: equal texts are one choice."""
    if answer.index is None or answer.index == gold:
        return answer.index is not None
    first = forms_of(tuple(choices)).first
    return first[answer.index] == first[gold]


def has_trace_format(output: str) -> bool:
    """Whether the output is exactly one `<think>...</think>` and one `<answer>...</answer>`, neither empty."""
    return _TRACE.fullmatch(output) is not None

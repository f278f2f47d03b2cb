"""
The one grader of the project: extract the answer, match it to a choice, grade it.

The order is the paper's (Table 1): an option letter first; without one, the text is aligned to a choice, exactly if it can
be and else to the most similar one. When nothing is similar enough the question is *unanswered*, which is not the same as
wrong and never a guess. How a match was made is part of the result.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

from .prompts import LETTERS


# Below this the closest choice is no longer an alignment but a guess. With fewer than three in five characters in common,
# in order, one-word distractors of MMAU start to be confused with each other.
MIN_SIMILARITY = 0.6

# The last tag counts: models quote the format before they use it. An unclosed tag is an answer cut at the token limit.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.IGNORECASE | re.DOTALL)
_TRACE = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)+</think>\s*<answer>(?:(?!</?think>|</?answer>).)+</answer>\s*", re.DOTALL
)

# The letter begins the text, or follows words that say an answer comes: "I think the answer is B". Only affirming ones:
# "it is not option B" and "rather than option B" choose nothing.
_LETTER_CUE = (
    r"(?:^[\s*_\"']*|\b(?:(?:answer|option|choice)[*_]*\s*(?:is(?![a-z])|:)"
    r"|(?:is|choose|pick|select|with)\s+(?=(?:the\s+)?(?:option|choice)\b))[\s:*_\"']*)"
    r"(?:(?:so|the|correct|final|answer|option|choice|is)(?![a-z])[\s:*_\"']*)*"
)
# "(B)", "B", "B.", "B: dog", "B, because", "**B**": the letter alone, at the end of a line or closed by punctuation. A bare
# letter before a word is not one: "A dog barks" begins with an article. Nor are "B-flat", the chord "D:maj" and the list
# "B, C"; the "I" in "B, I think" lists nothing.
_LETTER = re.compile(
    _LETTER_CUE + r"(?:\(\s*([A-Z])\s*\)|\[\s*([A-Z])\s*\]"
    r"|([A-Z])(?:[*_\"']|\s*[.!)\]]|\s*[,;](?!\s*(?-i:[A-HJ-Z])\b)|\s*[:-](?!\w)|[^\S\n]*\n|\s*$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """
    An extracted answer.

    Args:
        index (`int` or `None`): Which choice; None when the question was not answered.
        matched_by (`str`): `"letter"`, `"choice_text"`, `"similarity"` or `"none"`.
        text (`str`): What was matched.
    """

    index: int | None
    matched_by: str
    text: str


def extract_think(output: str) -> str | None:
    """The reasoning inside `<think></think>`, or None when there is none or it was cut."""
    found = _THINK.search(output)
    return found.group(1).strip() if found else None


def extract_answer_text(output: str) -> str:
    """
    The part of an output that holds the answer: the last `<answer>`, else what follows the reasoning, else everything.

    Reasoning that never ended holds no answer, however often it names a choice: the result is then empty.
    """
    tagged = _ANSWER.findall(output)
    if tagged:
        return tagged[-1].strip()
    if "</think>" in output:
        return output.rsplit("</think>", 1)[1].strip()
    return "" if "<think>" in output else output.strip()


def extract_answer_texts(outputs: Sequence[str]) -> list[str]:
    """
    `extract_answer_text` of every output that a metric is given.

    Raises:
        `ValueError`: There are none, or one is None, which may be no answer or a loss on the way.
    """
    if not outputs:
        raise ValueError("there are no predictions to score")
    if None in outputs:
        raise ValueError(f"prediction {outputs.index(None)} is None; give an empty text where nothing was answered")
    return [extract_answer_text(output) for output in outputs]


# "#", "+", "%", a leading "-" and the marks inside a number carry meaning: A# is not A, -5 is not 5, 1.5 is not 1/5.
_NO_MEANING = re.compile(r"(?!(?<=\d)[-.,:/]\d)(?:[^\w\s#+%-]|(?<=\w)-(?=\w))")


def _normalise(text: str) -> str:
    folded = text.casefold()
    # Most answers are words alone, and the expression costs more than everything else here.
    words = (folded if folded.replace(" ", "").isalnum() else _NO_MEANING.sub(" ", folded)).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words).replace(" %", "%")


def _numerals(text: str) -> list[str]:
    if text.replace(" ", "").isalpha():
        return []
    return [word for word in text.split() if any(map(str.isdigit, word))]


def _ends_a_longer_word(shorter: str, longer: str) -> bool:
    """What is added in front of a word reverses it (unhappy)."""
    at = longer.find(shorter)
    while at >= 0:
        before, after = longer[at - 1 : at], longer[at + len(shorter) :][:1]
        if (before.isalnum() or before == "_") and not (after.isalnum() or after == "_"):
            return True
        at = longer.find(shorter, at + 1)
    return False


def _most_similar(answer: str, choices: "Sequence[_Form]") -> list[int]:
    """
    The choices that an answer is most similar to: none, one, or several that are equally so.

    Similarity is 1.0 when the answer contains the choice as whole words, else the ratio of matching characters, in order; 0.0
    where characters mislead (10 is no kind of 1) or it is below `MIN_SIMILARITY`.
    """
    padded = f" {answer} "
    if contained := [i for i, choice in enumerate(choices) if choice.padded in padded]:
        return contained
    numerals = _numerals(answer)
    best, tied = MIN_SIMILARITY, list[int]()
    # The most promising first: what cannot come near the best needs no more than its bound.
    bounds = [_at_most(answer, choice) if choice.numerals == numerals else 0.0 for choice in choices]
    for i in sorted(range(len(choices)), key=bounds.__getitem__, reverse=True):
        if bounds[i] < best:
            break
        score = _ratio(answer, choices[i].text)
        if score > best:
            best, tied = score, []
        if score == best:
            tied.append(i)
    return sorted(tied)


def _at_most(answer: str, choice: "_Form") -> float:
    """The ratio, were all characters in order: quickly told, which the ratio is not; 0.0 where that is too low."""
    total = len(answer) + len(choice.text)
    shared = min(len(answer), len(choice.text))
    if 2.0 * shared / total < MIN_SIMILARITY:
        return 0.0
    if answer not in choice.text and choice.text not in answer:
        shared = 0
        for character in set(answer):
            here, there = answer.count(character), choice.text.count(character)
            shared += here if here < there else there
    return 2.0 * shared / total


def _ratio(answer: str, choice: str) -> float:
    if _ends_a_longer_word(*sorted((answer, choice), key=len)):
        return 0.0
    if answer in choice or choice in answer:
        return 2.0 * min(len(answer), len(choice)) / (len(answer) + len(choice))
    return SequenceMatcher(None, answer, choice, autojunk=False).ratio()


def _plain(choice: str) -> str:
    """Equal for choices that are the same. Punctuation counts here: 5% and 5 are two."""
    return " ".join(choice.casefold().split())


class _Form(NamedTuple):
    """A choice as answers are compared with it. `padded` is in no answer where the choice is nothing but punctuation."""

    plain: str
    text: str
    padded: str
    numerals: list[str]


@lru_cache(maxsize=16_384)  # yes, no, one, two: questions share their choices
def _form(choice: str) -> _Form:
    text = _normalise(choice)
    return _Form(_plain(choice), text, f" {text} " if text else "\0", _numerals(text))


@lru_cache(maxsize=16_384)  # the questions of a run, or of a training set, come again and again
def _forms(choices: tuple[str, ...]) -> tuple[list[str], list[str], list[_Form]]:
    """Choices as `_plain` has them, as `_normalise` has them, and all that answers are compared with."""
    forms = [_form(choice) for choice in choices]
    return [form.plain for form in forms], [form.text for form in forms], forms


def match_choice(text: str, choices: Sequence[str]) -> Answer:
    """
    Match an answer's text to one of the choices.

    Args:
        text (`str`): What `extract_answer_text` returned.
        choices (`Sequence[str]`): At most 26.

    Returns:
        `Answer`: `index` is None when no choice is similar enough, or two are equally so.
    """
    plain, normalised, forms = _forms(tuple(choices))
    # Before the letter: the chord "D:maj/M3" is a choice and no answer "D". A letter alone is always a letter.
    exact = _plain(text.strip().removesuffix("."))
    if len(exact) > 1 and exact in plain:
        return Answer(plain.index(exact), "choice_text", text)
    letter = _LETTER.search(text)
    if letter:
        index = LETTERS.index(next(group for group in letter.groups() if group).upper())
        if index < len(choices):
            # The first of equal choices, as by text: traces that say B and D of the same choice agree.
            return Answer(plain.index(plain[index]), "letter", text)
    answer = _normalise(text)
    if not answer:
        return Answer(None, "none", text)
    if answer in normalised:
        return Answer(normalised.index(answer), "choice_text", text)
    tied = _most_similar(answer, forms)
    # A choice that is part of another ("guitar" in "acoustic guitar") is contained whenever the longer one is.
    longest = [i for i in tied if all(normalised[j] in normalised[i] for j in tied)] if len(tied) > 1 else tied
    if not longest:
        return Answer(None, "none", text)
    return Answer(longest[0], "similarity", text)


def parse_answer(output: str, choices: Sequence[str]) -> Answer:
    """Extract and match in one step: what every caller outside this module wants."""
    return match_choice(extract_answer_text(output), choices)


def is_correct(answer: Answer, gold: int, choices: Sequence[str]) -> bool:
    """Whether the choice is the gold one. AVQA holds the gold text twice in some rows: the same text is the same choice."""
    if answer.index is None:
        return False
    plain = _forms(tuple(choices))[0]
    return plain[answer.index] == plain[gold]


def has_trace_format(output: str) -> bool:
    """Whether the output is exactly one `<think>...</think>` and one `<answer>...</answer>`, neither empty."""
    return _TRACE.fullmatch(output) is not None

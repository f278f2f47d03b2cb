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


def _normalise(text: str) -> str:
    # "#", "+", "%", a leading "-" and the marks inside a number carry meaning: A# is not A, -5 is not 5, 1.5 is not 1/5.
    words = re.sub(r"(?!(?<=\d)[-.,:/]\d)(?:[^\w\s#+%-]|(?<=\w)-(?=\w))", " ", text.casefold()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words).replace(" %", "%")


def _numerals(text: str) -> list[str]:
    return [word for word in text.split() if any(map(str.isdigit, word))]


def _similarity(answer: str, choice: str) -> float:
    """
    1.0 when the answer contains the choice as whole words, else the ratio of matching characters.

    Characters say nothing where they mislead: 10 is no kind of 1, and what is added in front of a word reverses it (unhappy).
    """
    if f" {choice} " in f" {answer} ":
        return 1.0
    shorter, longer = sorted((answer, choice), key=len)
    if _numerals(answer) != _numerals(choice) or re.search(rf"\w{re.escape(shorter)}(?!\w)", longer):
        return 0.0
    return SequenceMatcher(None, answer, choice, autojunk=False).ratio()


def _plain(choice: str) -> str:
    """Equal for choices that are the same. Punctuation counts here: 5% and 5 are two."""
    return " ".join(choice.casefold().split())


def match_choice(text: str, choices: Sequence[str]) -> Answer:
    """
    Match an answer's text to one of the choices.

    Args:
        text (`str`): What `extract_answer_text` returned.
        choices (`Sequence[str]`): At most 26.

    Returns:
        `Answer`: `index` is None when no choice is similar enough, or two are equally so.
    """
    # Before the letter: the chord "D:maj/M3" is a choice and no answer "D". A letter alone is always a letter.
    plain = [_plain(choice) for choice in choices]
    exact = _plain(text.strip().removesuffix("."))
    if len(exact) > 1 and exact in plain:
        return Answer(plain.index(exact), "choice_text", text)
    letter = _LETTER.search(text)
    if letter:
        index = LETTERS.index(next(group for group in letter.groups() if group).upper())
        if index < len(choices):
            # The first of equal choices, as by text: traces that say B and D of the same choice agree.
            return Answer(plain.index(plain[index]), "letter", text)
    answer, normalised = _normalise(text), [_normalise(choice) for choice in choices]
    if not answer:
        return Answer(None, "none", text)
    if answer in normalised:
        return Answer(normalised.index(answer), "choice_text", text)
    scores = [_similarity(answer, choice) if choice else 0.0 for choice in normalised]
    best = max(scores)
    # A choice that is part of another ("guitar" in "acoustic guitar") is contained whenever the longer one is.
    tied = [i for i, score in enumerate(scores) if score == best]
    longest = [i for i in tied if all(normalised[j] in normalised[i] for j in tied)]
    if best < MIN_SIMILARITY or not longest:
        return Answer(None, "none", text)
    return Answer(longest[0], "similarity", text)


def parse_answer(output: str, choices: Sequence[str]) -> Answer:
    """Extract and match in one step: what every caller outside this module wants."""
    return match_choice(extract_answer_text(output), choices)


def is_correct(answer: Answer, gold: int, choices: Sequence[str]) -> bool:
    """Whether the choice is the gold one. AVQA holds the gold text twice in some rows: the same text is the same choice."""
    return answer.index is not None and _plain(choices[answer.index]) == _plain(choices[gold])


def has_trace_format(output: str) -> bool:
    """Whether the output is exactly one `<think>...</think>` and one `<answer>...</answer>`, neither empty."""
    return _TRACE.fullmatch(output) is not None

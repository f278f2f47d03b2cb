"""
MMAU's official rule, without `evaluate`, which takes seconds to import.

An output is right when it holds every word of the answer and no word that only other choices hold. A word is a run of letters,
digits and underscores, whatever its case. What the rule does not know: an option letter alone answers nothing, and neither
does "(A) Man" where another choice holds the word "a".
"""

import re
from collections.abc import Sequence
from functools import lru_cache


_WORD = re.compile(r"\w+")


def words(text: str) -> set[str]:
    """The words that the rule compares."""
    return set(_WORD.findall(text.lower()))


@lru_cache(maxsize=65_536)  # a benchmark's questions, once each
def _expected(reference: str, choices: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Words that must be there, and words that must not."""
    wanted = words(reference)
    return frozenset(wanted), frozenset(words(" ".join(choices)) - wanted)


def decide(answer_text: str, reference: str, choices: Sequence[str]) -> bool | None:
    """
    The official decision on an extracted answer.

    Returns:
        `bool` or `None`: None when there is no answer, which the official script counts as wrong.
    """
    said = words(answer_text)
    if not said:
        return None
    wanted, unwanted = _expected(reference, tuple(choices))
    return wanted <= said and unwanted.isdisjoint(said)

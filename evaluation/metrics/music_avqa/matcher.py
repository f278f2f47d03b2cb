"""
Exact match over MUSIC-AVQA's vocabulary, without `evaluate`, which takes seconds to import.

The benchmark's own models are classifiers over 42 words, so an answer is one of them or none. Case, outer punctuation and the
underscore of "acoustic_guitar" do not matter; "2" is not "two", and an option letter is not a word of the vocabulary.
"""

import re

from sightsound.benchmarks.music_avqa import VOCABULARY


_OUTER = re.compile(r"^\W+|\W+$")


def plain(text: str) -> str:
    """The form in which an answer and the vocabulary are compared."""
    return " ".join(_OUTER.sub("", text.casefold().replace("_", " ")).split())


_KNOWN = {plain(word): word for word in VOCABULARY}


def word_of(text: str) -> str | None:
    """The word of the vocabulary that a text is, as the vocabulary spells it; None when it is none."""
    return _KNOWN.get(plain(text))


def decide(answer_text: str, reference: str) -> bool | None:
    """
    Whether an extracted answer is the right word.

    Returns:
        `bool` or `None`: None when it is no word of the vocabulary.
    """
    word = word_of(answer_text)
    return None if word is None else word == reference or word == word_of(reference)

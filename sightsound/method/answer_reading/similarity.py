"""The choice that a text resembles when it names none exactly: other small words, other endings, or a typing error."""

import re
from collections.abc import Iterator

from sightsound.method.answer_reading.choices import DENIES, HEDGES, KINDS, Form, Forms, bare_words, content_of, root_of


# Below this share of common words, the closest choice would be a guess.
MIN_SIMILARITY = 0.6
_OF_ALL = frozenset(("none", "all", "both", "neither"))
OF_THESE = re.compile(r"of (?:(?:the|these|those) )?(?:them|these|those|above|below|options?|choices|answers)")
_YES_AND_NO = (frozenset(("yes",)), frozenset(("no",)))
# With one of these words, a part of a choice means something else than the whole choice.
_NO_PART = DENIES | HEDGES | frozenset(("and", "or", "with", "than", "then", "more", "less", "fewer", "before", "after", "of"))


def most_similar(text: str, forms: Forms) -> int | None:
    """
    The one choice that equals a text except for small words, endings, a typing error or its last letters.

    A word in place of another makes a different text, however many letters the two share: "jazz guitar" is not "bass guitar".
    Words may be added or left out as long as the share of common words is at least `MIN_SIMILARITY`.
    """
    words = bare_words(text)
    if not words or len(words) > 60:
        return None
    said = content_of(words)
    if said.isdisjoint(forms.roots) and not any(
        word[:2] == other[:2] and _is_typing_error(word, other) for word in said for other in forms.roots
    ):
        return None
    scores = [(_similarity(words, said, choice), -i) for i, choice in enumerate(forms.all) if forms.first[i] == i]
    scores.sort(reverse=True)
    if not scores or scores[0][0] < MIN_SIMILARITY or (len(scores) > 1 and scores[1][0] == scores[0][0]):
        return None
    return -scores[0][1]


def short_form(words: tuple[str, ...], forms: Forms) -> int | None:
    """
    The one choice that one or two words abbreviate: "none" is "None of the above", "dog" is "dog barking".

    "female" is "female speech" only beside "male speech", which shares the rest. A part that is a thing of its own does not
    stand for the whole: "bass" is not "double bass".
    """
    if words[0] in _OF_ALL and (len(words) == 1 or OF_THESE.fullmatch(" ".join(words[1:]))):
        return _only(i for i, one in _longer(forms) if one.words[:2] == (words[0], "of"))
    if len(words) > 2 or not _NO_PART.isdisjoint(words) or (len(words[0]) == 1 and not words[0].isdigit()):
        return None
    said = frozenset(map(root_of, words))
    index = _only(i for i, one in _longer(forms) if not said.isdisjoint(one.roots))
    if index is None:
        return None
    whole, roots = forms.all[index].words, forms.all[index].roots
    rest = roots - said
    if len(whole) > 3 or not rest or not said < roots or not _NO_PART.isdisjoint(whole):
        return None
    shared = any(i != index and rest <= one.roots for i, one in _longer(forms))
    in_short = len(whole) == 2 and (any(word.endswith("ing") for word in whole) or not rest.isdisjoint(KINDS))
    return index if shared or in_short else None


def _longer(forms: Forms) -> Iterator[tuple[int, Form]]:
    """Choices of more than one word, without repetitions."""
    return ((i, one) for i, one in enumerate(forms.all) if forms.first[i] == i and len(one.words) > 1)


def _only(found: Iterator[int]) -> int | None:
    """The only index; None for no index and for several."""
    first = next(found, None)
    return first if next(found, None) is None else None


def _similarity(words: tuple[str, ...], said: frozenset[str], choice: Form) -> float:
    wanted = choice.roots
    shared = said & wanted
    added, missing = said - shared, wanted - shared
    if added and missing:
        if len(added) > 3 or len(missing) > 3:
            return 0.0
        for word in sorted(added):
            if twin := next((other for other in sorted(missing) if _is_typing_error(word, other)), None):
                added, missing, shared = added - {word}, missing - {twin}, shared | {twin}
    if (added and missing) or any(word[0].isdigit() for word in added | missing) or not added.isdisjoint(DENIES | HEDGES):
        return 0.0
    if wanted in _YES_AND_NO and words != choice.words:
        return 0.0  # "there is no violin" may mean yes
    if missing & DENIES or (missing and len(wanted) < 3):
        return 0.0
    # The same words in another order may mean something else.
    order = [word for word in map(root_of, words) if word in shared]
    other = [word for word in map(root_of, choice.words) if word in shared]
    return 2 * len(shared) / (len(shared) * 2 + len(added) + len(missing)) - (0.01 if order != other else 0.0)


def _is_typing_error(word: str, other: str) -> bool:
    """Whether two letters are swapped, one is doubled or the last is missing; in long words also any letter added."""
    shorter, longer = sorted((word, other), key=len)
    if len(longer) < 5 or word[0] != other[0] or not word.isalpha() or not other.isalpha() or len(longer) - len(shorter) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    if len(shorter) == len(longer):
        return at >= 2 and shorter[at : at + 2] == longer[at : at + 2][::-1] and shorter[at + 2 :] == longer[at + 2 :]
    if at < 2 or shorter[at:] != longer[at + 1 :]:
        return False
    return at == len(shorter) or longer[at] == longer[at - 1] or len(longer) >= 7

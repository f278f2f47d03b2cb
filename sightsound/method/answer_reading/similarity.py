"""Which choice a text is similar to, when it names none as it stands: other small words, endings, or a typing error."""

import re
from collections.abc import Iterator

from sightsound.method.answer_reading.choices import DENIES, HEDGES, KINDS, Form, Forms, bare_words, content_of, root_of


# Below this the closest choice is no longer an alignment but a guess.
MIN_SIMILARITY = 0.6
_OF_ALL = frozenset(("none", "all", "both", "neither"))
OF_THESE = re.compile(r"of (?:(?:the|these|those) )?(?:them|these|those|above|below|options?|choices|answers)")
_YES_AND_NO = (frozenset(("yes",)), frozenset(("no",)))
# Words without which a part says something else than its whole.
_NO_PART = DENIES | HEDGES | frozenset(("and", "or", "with", "than", "then", "more", "less", "fewer", "before", "after", "of"))


def most_similar(text: str, forms: Forms) -> int | None:
    """
    The one choice that a text is similar to: the same but for small words, endings, a typing error or its last letters.

    A word that stands for another makes another text ("jazz guitar" is no "bass guitar"), however many letters they share.
    Words may be added or left out, as long as `MIN_SIMILARITY` of all are shared.
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
    The one choice that a word or two say in short: "none" is "None of the above", "dog" is "dog barking".

    "female" is "female speech" only beside "male speech": both must share the rest. A part that is a thing of its own is not
    its whole: "bass" is no "double bass".
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
    """Choices of more than one word, each of equal ones once."""
    return ((i, one) for i, one in enumerate(forms.all) if forms.first[i] == i and len(one.words) > 1)


def _only(found: Iterator[int]) -> int | None:
    """The one that there is; None for none and for several."""
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
        return 0.0  # "there is no violin" may answer yes
    if missing & DENIES or (missing and len(wanted) < 3):
        return 0.0
    # In another order the same words say something else.
    order = [word for word in map(root_of, words) if word in shared]
    other = [word for word in map(root_of, choice.words) if word in shared]
    return 2 * len(shared) / (len(shared) * 2 + len(added) + len(missing)) - (0.01 if order != other else 0.0)


def _is_typing_error(word: str, other: str) -> bool:
    """Two letters swapped, one doubled or the last one cut; in a long word any one letter too much or too few."""
    shorter, longer = sorted((word, other), key=len)
    if len(longer) < 5 or word[0] != other[0] or not word.isalpha() or not other.isalpha() or len(longer) - len(shorter) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    if len(shorter) == len(longer):
        return at >= 2 and shorter[at : at + 2] == longer[at : at + 2][::-1] and shorter[at + 2 :] == longer[at + 2 :]
    if at < 2 or shorter[at:] != longer[at + 1 :]:
        return False
    return at == len(shorter) or longer[at] == longer[at - 1] or len(longer) >= 7

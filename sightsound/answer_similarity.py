"""Which choice a text is similar to, when it names none as it stands: other small words, endings, or a typing error."""

from .answer_choices import DENIES, HEDGES, Form, Forms, bare_words, content_of, root_of


# Below this the closest choice is no longer an alignment but a guess.
MIN_SIMILARITY = 0.6


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

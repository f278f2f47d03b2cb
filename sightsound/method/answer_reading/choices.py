"""
Find the choices of a question that a text names, and those that it denies.

Texts are compared as words. Case, punctuation and a leading article do not matter; "2" equals "two", a plural its singular.
"""

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple


# Numbers keep their signs (-5, 1.5, 10-20, 5%), notes their sharp (A#), contractions their end (isn't). Punctuation marks are
# words of their own, because they limit what a "not" denies.
_WORD = re.compile(r"(?<!\w)-?\d+(?:[-.,:/]\d+)*%?(?![^\W_])|[^\W_]+(?:'[^\W\d_]+|[#+]+)?|[,;:()?!—–]")
_LETTERS_AND_DIGITS = re.compile(r"[^\W_]+")
_PLAIN_WORDS = re.compile(r"[a-z ]+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MARKS = frozenset(",;:()?!—–")
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_NUMBERS = {word: str(number) for number, word in enumerate(f"{_UNITS} eighteen nineteen twenty".split())}
_NUMBERS |= {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "hundred": "100"}
_NUMERALS = frozenset(_NUMBERS.values())
_ARTICLES = frozenset(("a", "an", "the"))
_FALSE_PLURALS = ("ss", "us", "is")

# Words that deny everything up to the next turn of the sentence, and the words of such turns. A comma is no turn: "not a dog, a
# bell" may be a list of denied choices.
DENIES = _set(
    "not no never neither nor without cannot hardly unlike except excluding eliminate eliminates eliminated eliminating "
    "exclude excludes excluded discard dismiss lack lacks lacking absence rule rules ruled ruling wrong incorrect "
    "unlikely against exception"
)
_TURNS = _set("but however though instead so therefore thus hence it they this that's leaves leaving ; : — – ? !")
_DENIES_ONE = _set("not neither nor isn't wasn't aren't")
_EVERY = _set("anything everything all any every everyone anyone")
_EXCEPT = _set("unlike except excluding")
_EXCEPT_IN_TWO = {("save", "for"), ("none", "of"), ("apart", "from"), ("aside", "from"), ("different", "from"), ("far", "from")}
_NO_VERB = _MARKS | {"and", "or"}
_NO_DENIAL = _set("only just doubt question matter problem")
# "The dog is not heard": words that deny the choice before them, unless one of the second list stands between.
_DENIED_AFTER = _set(
    "not never wrong incorrect absent missing unlikely impossible eliminated excluded false ruled unsupported "
    "inconsistent nowhere cannot out"
)
_OTHER_THOUGHT = _set("who which that and or because since as with but while so although whereas to")
_MORE_OR_LESS = _set("more less fewer over under above below least most up exceeding beyond almost nearly")
_POINTING = _set("the this that which each every other another first second last no any latter former")
HEDGES = _set("maybe perhaps possibly might may could unsure uncertain unclear either whether")
_WHOLE = frozenset(("both", "neither", "none", "all"))
_SMALL_WORDS = _set(
    "a an the of in on at to and or is are was were be been being by with for from as it its this that there i he she "
    "they very sound sounds"
)


def words_of(text: str) -> list[str]:
    """The words and marks of a text in lower case: numbers as digits, possessives without their ending."""
    folded = text.casefold()
    if _PLAIN_WORDS.fullmatch(folded):
        return [_NUMBERS.get(word, word) for word in folded.split()]
    words = _WORD.findall(folded.replace("’", "'").replace(" %", "%"))
    return [_NUMBERS.get(word) or (word if word.isalpha() else _one_word(word)) for word in words]


def _one_word(word: str) -> str:
    if word.endswith("'s") or word.endswith("'"):
        return _NUMBERS.get(word[:-2], word[:-2])
    if word[0].isdigit() and "." in word and not word.endswith("%"):
        whole, _, rest = word.partition(".")
        return whole if not rest.strip("0") else word
    return word


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word[-1] == "s" and not word.endswith(_FALSE_PLURALS) else word


@lru_cache(maxsize=65_536)
def root_of(word: str) -> str:
    """A form that "barks", "barking" and "barked" share."""
    if word[-1] not in "gdsye":  # most words have no such ending
        return word
    for end in ("ing", "ed", "es", "ly", "s"):
        if word.endswith(end) and len(word) - len(end) >= 3 and not word.endswith(_FALSE_PLURALS):
            word = word[: -len(end)]
            if len(word) > 3 and word[-1] == word[-2]:
                word = word[:-1]
            break
    if len(word) > 3 and word[-1] in "ey":
        return word[:-1] + ("i" if word[-1] == "y" else "")
    return word


# Words that a choice may be named without: "robot" is "robot voice".
KINDS = frozenset(map(root_of, ("voice", "speech", "music", "sound", "noise")))


def plain(choice: str) -> str:
    """Equal for equal choices. Punctuation counts here: 5% and 5 differ."""
    return " ".join(choice.casefold().split())


def bare_words(text: str) -> tuple[str, ...]:
    """Words without marks and a leading article."""
    folded = text.casefold()
    if folded.isascii() and folded.replace(" ", "").isalpha():  # most choices; the same as below, and quicker
        words = tuple([_NUMBERS.get(word, word) for word in folded.split()])
        return words[1:] if len(words) > 1 and words[0] in _ARTICLES and not _is_key(words) else words
    words = tuple(word for word in words_of(text) if word not in _MARKS)
    article = len(words) > 1 and words[0] in _ARTICLES and text.lstrip(" \t\n\"'([*`_").casefold().startswith(words[0] + " ")
    return words[1:] if article and not _is_key(words) else words


def _is_key(words: tuple[str, ...]) -> bool:
    """Whether the words are a key such as "A minor", whose "A" is no article."""
    return words[1] in ("major", "minor") and words[0] == "a"


class Form(NamedTuple):
    """A choice in the forms that answers are compared with."""

    words: tuple[str, ...]
    stems: tuple[str, ...]
    roots: frozenset[str]


@lru_cache(maxsize=16_384)  # yes, no, one, two: questions share their choices
def form(choice: str) -> Form:
    words = bare_words(choice)
    return Form(words, tuple(map(_stem, words)), content_of(words))


def beginnings_of(text: str) -> set[str]:
    """The first two letters of each word. Texts that share none have no word in common, in any form."""
    return {(_NUMBERS.get(word) or word)[:2] for word in _LETTERS_AND_DIGITS.findall(text)}


class Forms:
    """
    The choices of a question, by what finds them. `first` of each choice is the first of those that are equal to it.

    Most answers are a letter or a choice as it stands: what only other answers need is made when one comes.
    """

    def __init__(self, choices: tuple[str, ...]) -> None:
        self._choices = choices
        plains = [plain(choice) for choice in choices]
        self.by_plain = dict[str, int]()
        self.first = [self.by_plain.setdefault(one, i) for i, one in enumerate(plains)]
        self.plains = plains

    def nearly(self, text: str) -> int | None:
        """The one choice that equals a text, in the form of `plain`, except for a last letter: a plural, a slip or a cut."""
        if len(text) < 4 or not text[-1].isalpha():
            return None
        if (text[-1] == "s" or text[-1] == text[-2]) and text[:-1] in self.by_plain and text[-2].isalpha():
            return self.by_plain[text[:-1]]
        cut = {self.by_plain[one] for one in self.plains if one[:-1] == text and one[-1].isalpha()}
        return cut.pop() if len(cut) == 1 else None

    @cached_property
    def all(self) -> list[Form]:
        return [form(choice) for choice in self._choices]

    @cached_property
    def beginnings(self) -> set[str]:
        return beginnings_of(" ".join(self.plains))

    @cached_property
    def beginnings_of_single_words(self) -> set[str]:
        """`beginnings` of the choices of one word; a single word resembles no other choice."""
        content = [[word for word in one.split() if word not in _SMALL_WORDS] for one in self.plains]
        return beginnings_of(" ".join(one for one, words in zip(self.plains, content, strict=True) if len(words) < 2))

    def may_shorten(self, word: str) -> bool:
        """A quick test, before all others, whether one plain word may abbreviate a longer choice."""
        holding = [one.split() for one in self.plains if word[:3] in one]
        exact = [words for words in holding if word in words]
        if not exact:
            return bool(holding)
        rest = [other for other in exact[0] if other != word and other not in _ARTICLES]
        if len(exact) > 1 or len(rest) > 2:
            return False
        if len(rest) == 1 and (rest[0].endswith("ing") or word.endswith("ing") or root_of(rest[0]) in KINDS):
            return True
        return any(words is not exact[0] and all(other in words for other in rest) for words in map(str.split, self.plains))

    @cached_property
    def by_words(self) -> dict[tuple[str, ...], int]:
        return {one.words: i for i, one in reversed(list(enumerate(self.all))) if one.words}

    @cached_property
    def longest_first(self) -> list[int]:
        return sorted(set(self.first), key=lambda i: -len(self.all[i].words))

    @cached_property
    def roots(self) -> frozenset[str]:
        return frozenset().union(*(one.roots for one in self.all))


@lru_cache(maxsize=16_384)  # the questions of a run, or of a training set, come again and again
def forms_of(choices: tuple[str, ...]) -> Forms:
    return Forms(choices)


def content_of(words: Sequence[str]) -> frozenset[str]:
    if len(words) == 2 and _is_key(tuple(words)):
        return frozenset(words)
    return frozenset([root_of(word) for word in words if word not in _SMALL_WORDS]) or frozenset(words)


class Mentions(NamedTuple):
    """The choices that a sentence names and does not deny, those that it denies, and whether it is undecided."""

    named: set[int]
    denied: set[int]
    undecided: bool


def mentions_of(sentence: str, forms: Forms) -> Mentions:
    """Find the choices that a sentence mentions, longer ones first: "acoustic guitar" is no mention of "guitar"."""
    tokens = words_of(sentence)
    at = [i for i, token in enumerate(tokens) if token not in _MARKS]
    stems = [_stem(tokens[i]) for i in at]
    places = dict[str, list[int]]()
    for place, stem in enumerate(stems):
        places.setdefault(stem, []).append(place)
    taken, found = set[int](), list[tuple[int, int, int]]()
    for i in forms.longest_first:
        choice = forms.all[i]
        size = len(choice.stems)
        if not size or choice.stems[0] not in places or _is_no_mention(choice):
            continue
        for place in places[choice.stems[0]]:
            span = range(place, place + size)
            if tuple(stems[place : place + size]) == choice.stems and taken.isdisjoint(span):
                if choice.words[0] == "a" and "A " not in sentence:
                    continue  # "in a minor key"
                if choice.words == ("1",) and place and tokens[at[place] - 1] in _POINTING:
                    continue
                if choice.words[0].isdigit() and _is_part_of_number(tokens, at[place], at[place + size - 1]):
                    continue
                taken.update(span)
                found.append((at[place], at[place + size - 1], i))
    found += _scattered(stems, at, taken, {i for *_, i in found}, forms)
    if not found and tokens and (tokens[0],) not in forms.by_words:
        return Mentions(set(), set(), False)
    named, denied, undecided = set[int](), set[int](), False
    masked = {k for start, end, _ in found for k in range(start, end + 1)}
    for start, end, i in sorted(found):
        if _is_denied(tokens, masked, start, end) and not _is_set_against(tokens, sorted(found), (start, end, i)):
            denied.add(i)
        elif _is_compared(tokens, start):
            undecided = True
        else:
            named.add(i)
    if first := _leading(tokens, forms, sorted(found)):
        return Mentions({first - 1}, denied - {first - 1}, False)
    return Mentions(named, denied - named, undecided or _hedged(tokens, masked))


def _scattered(stems: list[str], at: list[int], taken: set[int], known: set[int], forms: Forms) -> list[tuple[int, int, int]]:
    """Choices whose words all occur in another form or order: "the dog is barking", "it sits in a cage"."""
    roots = {root_of(stem): place for place, stem in enumerate(stems) if place not in taken}
    found = []
    if roots.keys().isdisjoint(forms.roots):
        return []
    for i in sorted(set(forms.first) - known, key=lambda i: -len(forms.all[i].roots)):
        wanted = forms.all[i].roots
        if (
            "a" not in wanted
            and wanted <= roots.keys()
            and max(map(len, wanted), default=0) > 2
            and not _is_no_mention(forms.all[i])
        ):
            places = sorted(roots.pop(root) for root in wanted)
            found.append((at[places[0]], at[places[-1]], i))
    return found


def _is_part_of_number(tokens: list[str], start: int, end: int) -> bool:
    """Whether a number is part of a longer one: the "two" of "twenty-two"."""
    return (start > 0 and tokens[start - 1].isdigit()) or (end + 1 < len(tokens) and tokens[end + 1].isdigit())


def _is_no_mention(choice: Form) -> bool:
    """Whether a choice is a single letter, "yes" or "no". These occur in many texts and count only as the whole answer."""
    return choice.words in (("yes",), ("no",)) or (
        len(choice.words) == 1 and len(choice.words[0]) == 1 and not choice.words[0].isdigit()
    )


def _leading(tokens: list[str], forms: Forms, found: list[tuple[int, int, int]]) -> int:
    """1 + the index of a choice "yes", "no", "both" or "neither" that begins the sentence; else 0."""
    if not tokens:
        return 0
    index = forms.by_words.get((tokens[0],))
    if index is None:
        return 0
    after = tokens[1] if len(tokens) > 1 else ","
    no_is_said = after in _MARKS or after in ("it", "there", "the", "they", "this", "i", "he", "she", "we")
    if tokens[0] == "yes" or (tokens[0] == "no" and no_is_said) or (tokens[0] in _WHOLE and found and found[0][0] == 0):
        return index + 1
    return 0


def _is_denied(tokens: list[str], masked: set[int], start: int, end: int) -> bool:
    article = start > 0 and tokens[start - 1] in _ARTICLES
    if tokens[start - 1 - article : start - article] == ["over"] and not tokens[start][0].isdigit():
        return True  # "I choose the bell over the dog"
    comma = False  # between another choice and this one
    for k in range(start - 1, max(-1, start - 26), -1):
        token, after = tokens[k], tokens[k + 1] if k + 1 < len(tokens) else ""
        if k in masked:
            continue
        comma |= token == "," and k - 1 in masked
        if (token in ("than", "of") and tokens[k - 1] in ("rather", "other", "instead")) or token == "opposed":
            return not comma
        if token in ("but", "save") and (tokens[max(0, k - 1)] in _EVERY or tokens[max(0, k - 2)] in _EVERY):
            return True  # "anything but rain"
        if token in _EXCEPT and k < 2 and comma and end + 1 < len(tokens) and tokens[end + 1] not in _NO_VERB:
            return False  # "unlike the dog, the bell rings"
        if (token, after) in _EXCEPT_IN_TWO:
            return True
        if token in _TURNS and not (token in ("it", "they", "this") and after in ("or", "and")):
            return False
        if (token in DENIES or token.endswith("n't")) and after not in _NO_DENIAL:
            if after == "," and token == "no":
                return False
            return not (token in ("rule", "rules", "ruled", "ruling") and after != "out")
    for k in range(end + 1, min(len(tokens), end + 8)):
        token = tokens[k]
        if token in _MARKS or token in _OTHER_THOUGHT:
            return False
        if token in _DENIED_AFTER or token.endswith("n't"):
            return k + 1 >= len(tokens) or tokens[k + 1] not in _NO_DENIAL
    return False


def _is_set_against(tokens: list[str], found: list[tuple[int, int, int]], mention: tuple[int, int, int]) -> bool:
    """Whether a mention ends a list whose other parts each have a denial of their own: the bell in "not a dog, a bell"."""
    start, end, _ = mention
    if len(found) < 2 or mention != found[-1] or tokens[end + 1 : end + 2] not in ([], ["because"], ["since"]):
        return False
    if tokens[found[-2][1] + 1 : start] not in ([","], [",", "a"], [",", "an"], [",", "the"]) or "there" in tokens:
        return False
    befores = (tokens[max(0, at - 2) : at] for at, *_ in found[:-1])
    return all(
        (words[-1:] and words[-1] in _DENIES_ONE) or (words[-1:] and words[-1] in _ARTICLES and words[0] in _DENIES_ONE)
        for words in befores
    )


def _is_compared(tokens: list[str], start: int) -> bool:
    """Whether something is compared with the choice: "more than five", "at least five", "louder than the dog"."""
    before = tokens[max(0, start - 4) : start]
    while before and before[-1] in ("a", "an", "the", "that", "of"):
        before.pop()
    return bool(before) and (before[-1] == "than" or (before[-1] in _MORE_OR_LESS and tokens[start][0].isdigit()))


def _hedged(tokens: list[str], masked: set[int]) -> bool:
    for k, token in enumerate(tokens):
        if token in ("because", "since"):
            return False
        if token in ("another", "possible") and tokens[k + 1 : k + 2] in (["option"], ["choice"], ["answer"], ["possibility"]):
            return True
        if token in HEDGES and k not in masked:
            if token == "could" and ("hear" in tokens[k : k + 4] or "heard" in tokens[k : k + 4]):
                continue
            return True
    return False

"""
What a claim names: the few words after "the answer is", before "is correct", or alone on a line.

`Found` holds a choice. `OPEN` is a claim that leaves it open ("B or C"), None one that says nothing of the choices.
"""

import re
from typing import NamedTuple

from sightsound.data.schema import LETTERS
from sightsound.method.answer_reading.choices import Forms, Said, bare_words, said_of
from sightsound.method.answer_reading.cues import (
    AFTER_LETTER,
    INLINE_OPTION,
    LAST_LETTER,
    LETTER,
    LETTER_AFTER_LEAD,
    LETTERS_JOINED,
    MORE_LETTERS,
    MUSICAL,
    NOT_BUT,
    NOT_STATED,
    OTHER_CLAUSE,
    PLAIN_DENIAL,
    PREFERS,
    REASON,
    REJECTED,
    SENTENCE_END,
    SETS_APART,
    SHORT_QUESTION,
    SLASH_LETTER,
    SUBJECT_LEAD,
)
from sightsound.method.answer_reading.similarity import OF_THESE, most_similar, short_form


class Found(NamedTuple):
    """A choice and how it was found; no choice where a statement leaves it open."""

    choice: int | None
    matched_by: str


OPEN = Found(None, "none")


def only_claim(line: str, forms: Forms) -> Found | None:
    """A line that is nothing but a letter, a letter and its text, or a choice."""
    words = bare_words(line)
    if not words:
        return OPEN
    if line.rstrip().endswith("?") and not any(choice.endswith("?") for choice in forms.plains):
        return None
    if len(words) > 1 and (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    letter = LETTER.match(line)
    if letter:
        rest = line[letter.end() :]
        tail = bare_words(rest)
        # "A dog" where the dog is another choice begins with an article.
        apart = not tail or letter.group(1) or rest[0] in ".):]" or rest.lstrip()[0] in "-–—:=,;("
        if (not tail or tail in forms.by_words) and (apart or letter.group(2) not in "AaIi"):
            return chosen(letter, rest, forms)
    if (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    if (index := short_form(words, forms)) is not None:
        return Found(index, "similarity")
    # None of the choices, or the choice "none"?
    return OPEN if words[0] == "none" and OF_THESE.fullmatch(" ".join(words[1:])) else None


def chosen(letter: re.Match[str], rest: str, forms: Forms) -> Found:
    index = LETTERS.index((letter.group(1) or letter.group(2)).upper())
    if index < len(forms.all):
        return Found(forms.first[index], "letter")
    # Beyond the choices it is no option's letter: a note perhaps, or a slip before a choice's text.
    other = forms.by_words.get(bare_words(rest) or (LETTERS[index].casefold(),))
    return OPEN if other is None else Found(other, "choice_text")


def letter_of(claim: str, forms: Forms, *, cued: bool) -> Found | None:
    """The letter that a statement begins with, `OPEN` for several letters, None when it begins with none."""
    letter = (LETTER_AFTER_LEAD if cued else LETTER).match(claim)
    if letter is None:
        return OPEN if SLASH_LETTER.match(claim) else None
    rest = claim[letter.end() :]
    if _lists_options(claim):
        return OPEN
    name = letter.group(2)
    if name is not None and not _stands_alone(name, rest, forms, cued=cued):
        return None
    if MORE_LETTERS.match(rest) or SLASH_LETTER.match(claim[letter.start(letter.lastindex or 0) :]):
        return OPEN
    return chosen(letter, rest, forms)


def _lists_options(line: str) -> bool:
    """Whether a line repeats the options: "(A) dog (B) bell"."""
    found = list(INLINE_OPTION.finditer(line[:400]))
    return (
        len(found) > 1
        and ord(found[1].group(1)) == ord(found[0].group(1)) + 1
        and not SETS_APART.search(line, found[0].end(), found[1].start())
    )


def _stands_alone(name: str, rest: str, forms: Forms, *, cued: bool) -> bool:
    """Whether a letter without brackets is an option's, and no article, pronoun, note or initial."""
    after = rest.lstrip()
    if not after or not after.strip(".!"):
        return True
    text_follows = LETTERS.index(name.upper()) < len(forms.all) and _begins(rest, forms.all[LETTERS.index(name.upper())].words)
    if rest[0] in ".:)]":
        return text_follows or not rest[1:2].strip() or not (rest[1].isalnum() or rest[1] == "'") or rest[0] in ")]"
    if after[0] in "\n(!" or after[0] in "–—=" or after.startswith("- "):
        return name != "I" or after[0] not in "(!"
    if after[0] in ",;":
        return name not in "Iia"
    if MORE_LETTERS.match(rest):
        return name not in "ia"
    if name in "Ii" or name == "a":
        return False
    if name == "A":
        return bool(AFTER_LETTER.match(rest)) or (text_follows and rest[:1] == " " and after[:1].isupper())
    if name.islower() and not cued:
        return False
    return text_follows or not MUSICAL.match(rest)


def _begins(rest: str, words: tuple[str, ...]) -> bool:
    return bool(words) and bare_words(rest[:200])[: len(words)] == words


def sentence_at(text: str, start: int) -> str:
    end = SENTENCE_END.search(text, start, min(len(text), start + 600))
    return text[start : end.end() if end else min(len(text), start + 600)]


def about_one(said: Said) -> int | None:
    return next(iter(said.named)) if len(said.named) == 1 and not said.undecided else None


def claimed(claim: str, forms: Forms) -> Found | None:
    """
    What stands after a cue. None: it says nothing of the choices, "the answer is clear".
    """
    line = claim.strip().split("\n", 1)[0].strip()
    if turned := NOT_BUT.match(line):
        line = line[turned.end() :]
    if SHORT_QUESTION.match(line) and not any(choice.endswith("?") for choice in forms.plains):
        return OPEN
    sentence = sentence_at(line, 0).strip(" .!,;:")
    words = bare_words(sentence)
    if len(words) > 1 and (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    if line.endswith("?") and sentence == line.rstrip("?").strip() and not words:
        return None
    begins = [i for i in forms.first if len(forms.all[i].words) > 1 and _begins(sentence, forms.all[i].words)]
    # "The answer is A man": the choice's own article, and no letter.
    own_article = begins and sentence[:2].strip().casefold() in ("a", "an", "i")
    if not own_article and (found := letter_of(line, forms, cued=True)):
        rejected = None if found.choice is None or AFTER_LETTER.match(line) else REJECTED.match(line)
        return None if rejected and rejected.end() < 40 and not OTHER_CLAUSE.search(rejected.group()) else found
    if (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    said = said_of(before_reason(sentence), forms)
    if (index := about_one(said)) is not None:
        return Found(index, "similarity")
    if said.named or said.undecided:
        return OPEN
    if said.denied:
        return None
    if len(words) <= 20 and not PLAIN_DENIAL.search(sentence) and (index := most_similar(sentence, forms)) is not None:
        return Found(index, "similarity")
    return OPEN if PLAIN_DENIAL.match(sentence) else None


def before_reason(sentence: str) -> str:
    return REASON.split(sentence, 1)[0]


def subject_of(clause: str, before: str, forms: Forms) -> Found | None:
    """What "is the correct answer"."""
    if NOT_STATED.search(clause):
        return None
    clause = clause.strip()
    if LETTERS_JOINED.search(before) and not PREFERS.search(before):
        return OPEN
    lead = SUBJECT_LEAD.match(clause)
    rest = clause[lead.end() if lead else 0 :]
    letter = LETTER.match(rest)
    if letter and (letter.group(1) or letter.group(2) not in "aIi" or not rest[letter.end() :].strip()):
        tail = rest[letter.end() :]
        if MORE_LETTERS.match(tail):
            return OPEN
        if not tail.strip() or letter.group(1) or tail[0] in ".):]" or letter.group(2) not in "A" or tail[:2] in (" (", " -"):
            return chosen(letter, tail, forms)
    if last := LAST_LETTER.search(rest):
        return chosen(last, "", forms)
    index = about_one(said_of(clause, forms))
    return None if index is None else Found(index, "similarity")

"""
Read a claim: the few words after "the answer is", before "is correct", or alone on a line.

The result is a `Found` with a choice, `OPEN` for a claim that does not decide ("B or C"), or None for one about no choice.
"""

import re
from typing import NamedTuple

from sightsound.data.schema import LETTERS
from sightsound.method.answer_reading import cues
from sightsound.method.answer_reading.choices import Forms, Mentions, bare_words, mentions_of
from sightsound.method.answer_reading.similarity import OF_THESE, most_similar, short_form


class Found(NamedTuple):
    """A choice and how it was found; no choice where a statement does not decide."""

    choice: int | None
    matched_by: str


OPEN = Found(None, "none")


def only_claim(line: str, forms: Forms) -> Found | None:
    """The choice of a line that has only a letter, a letter and its text, or a choice."""
    words = bare_words(line)
    if not words:
        return OPEN
    if line.rstrip().endswith("?") and not any(choice.endswith("?") for choice in forms.plains):
        return None
    if len(words) > 1 and (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    letter = cues.LETTER.match(line)
    if letter:
        rest = line[letter.end() :]
        tail = bare_words(rest)
        # "A dog" begins with an article where "dog" is another choice than A.
        apart = not tail or letter.group(1) or rest[0] in ".):]" or rest.lstrip()[0] in "-–—:=,;("
        if (not tail or tail in forms.by_words) and (apart or letter.group(2) not in "AaIi"):
            return chosen(letter, rest, forms)
    if (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    if (index := short_form(words, forms)) is not None:
        return Found(index, "similarity")
    # "none of these" decides for no choice.
    return OPEN if words[0] == "none" and OF_THESE.fullmatch(" ".join(words[1:])) else None


def chosen(letter: re.Match[str], rest: str, forms: Forms) -> Found:
    index = LETTERS.index((letter.group(1) or letter.group(2)).upper())
    if index < len(forms.all):
        return Found(forms.first[index], "letter")
    # A letter beyond the choices is no option: perhaps it is a note, or a slip before a choice's text.
    other = forms.by_words.get(bare_words(rest) or (LETTERS[index].casefold(),))
    return OPEN if other is None else Found(other, "choice_text")


def letter_of(claim: str, forms: Forms, *, cued: bool) -> Found | None:
    """The choice whose letter begins a statement; `OPEN` for several letters, None for no letter."""
    letter = (cues.LETTER_AFTER_LEAD if cued else cues.LETTER).match(claim)
    if letter is None:
        return OPEN if cues.SLASH_LETTER.match(claim) else None
    rest = claim[letter.end() :]
    if _lists_options(claim):
        return OPEN
    name = letter.group(2)
    if name is not None and not _stands_alone(name, rest, forms, cued=cued):
        return None
    if cues.MORE_LETTERS.match(rest) or cues.SLASH_LETTER.match(claim[letter.start(letter.lastindex or 0) :]):
        return OPEN
    return chosen(letter, rest, forms)


def _lists_options(line: str) -> bool:
    """Whether a line repeats the options: "(A) dog (B) bell"."""
    found = list(cues.INLINE_OPTION.finditer(line[:400]))
    return (
        len(found) > 1
        and ord(found[1].group(1)) == ord(found[0].group(1)) + 1
        and not cues.SETS_APART.search(line, found[0].end(), found[1].start())
    )


def _stands_alone(name: str, rest: str, forms: Forms, *, cued: bool) -> bool:
    """Whether a letter without brackets names an option, and is no article, pronoun, note or initial."""
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
    if cues.MORE_LETTERS.match(rest):
        return name not in "ia"
    if name in "Ii" or name == "a":
        return False
    if name == "A":
        return bool(cues.AFTER_LETTER.match(rest)) or (text_follows and rest[:1] == " " and after[:1].isupper())
    if name.islower() and not cued:
        return False
    return text_follows or not cues.MUSICAL.match(rest)


def _begins(rest: str, words: tuple[str, ...]) -> bool:
    return bool(words) and bare_words(rest[:200])[: len(words)] == words


def sentence_at(text: str, start: int) -> str:
    end = cues.SENTENCE_END.search(text, start, min(len(text), start + 600))
    return text[start : end.end() if end else min(len(text), start + 600)]


def about_one(mentions: Mentions) -> int | None:
    return next(iter(mentions.named)) if len(mentions.named) == 1 and not mentions.undecided else None


def claimed(claim: str, forms: Forms) -> Found | None:
    """The choice that stands after a cue; None where the words are about no choice: "the answer is clear"."""
    line = claim.strip().split("\n", 1)[0].strip()
    if turned := cues.NOT_BUT.match(line):
        line = line[turned.end() :]
    if cues.SHORT_QUESTION.match(line) and not any(choice.endswith("?") for choice in forms.plains):
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
        rejected = None if found.choice is None or cues.AFTER_LETTER.match(line) else cues.REJECTED.match(line)
        return None if rejected and rejected.end() < 40 and not cues.OTHER_CLAUSE.search(rejected.group()) else found
    if (index := forms.by_words.get(words)) is not None:
        return Found(index, "choice_text")
    mentions = mentions_of(before_reason(sentence), forms)
    if (index := about_one(mentions)) is not None:
        return Found(index, "similarity")
    if mentions.named or mentions.undecided:
        return OPEN
    if mentions.denied:
        return None
    if len(words) <= 20 and not cues.PLAIN_DENIAL.search(sentence) and (index := most_similar(sentence, forms)) is not None:
        return Found(index, "similarity")
    return OPEN if cues.PLAIN_DENIAL.match(sentence) else None


def before_reason(sentence: str) -> str:
    return cues.REASON.split(sentence, 1)[0]


def subject_of(clause: str, before: str, forms: Forms) -> Found | None:
    """The choice before a cue: what "is the correct answer"."""
    if cues.NOT_STATED.search(clause):
        return None
    clause = clause.strip()
    if cues.LETTERS_JOINED.search(before) and not cues.PREFERS.search(before):
        return OPEN
    lead = cues.SUBJECT_LEAD.match(clause)
    rest = clause[lead.end() if lead else 0 :]
    letter = cues.LETTER.match(rest)
    if letter and (letter.group(1) or letter.group(2) not in "aIi" or not rest[letter.end() :].strip()):
        tail = rest[letter.end() :]
        if cues.MORE_LETTERS.match(tail):
            return OPEN
        if not tail.strip() or letter.group(1) or tail[0] in ".):]" or letter.group(2) not in "A" or tail[:2] in (" (", " -"):
            return chosen(letter, tail, forms)
    if last := cues.LAST_LETTER.search(rest):
        return chosen(last, "", forms)
    index = about_one(mentions_of(clause, forms))
    return None if index is None else Found(index, "similarity")

"""
Find the final statement of an answer: "the answer is B", "(B) fits best", "B" on a line of its own.

Statements are read from the last to the first. A letter counts more than a choice's text, and both more than a choice that is
only mentioned. A statement that does not decide ("B or C", "it could be a dog") ends the search, so that nothing is guessed.
"""

import re

from sightsound.method.answer_reading import cues
from sightsound.method.answer_reading.choices import Forms, bare_words, beginnings_of, mentions_of
from sightsound.method.answer_reading.claims import (
    OPEN,
    Found,
    about_one,
    before_reason,
    chosen,
    claimed,
    letter_of,
    only_claim,
    sentence_at,
    subject_of,
)
from sightsound.method.answer_reading.marks import closed, without_marks
from sightsound.method.answer_reading.similarity import most_similar, short_form


def read_statement(section: str, forms: Forms) -> Found:
    """The choice in the final statement of a text from `extract_answer_text`."""
    if (
        len(section) < 200
        and section.isascii()
        and not cues.LONE_LETTER.search(section)
        and forms.beginnings.isdisjoint(beginnings_of(section.casefold()))
    ):
        return OPEN
    plain_words = section.removesuffix(".")
    if not cues.SPECIAL_READING.search(plain_words):
        folded = plain_words.casefold()
        if " " not in folded and forms.beginnings_of_single_words.isdisjoint(beginnings_of(folded)):
            index = short_form(bare_words(folded), forms) if forms.may_shorten(folded) else None
            return OPEN if index is None else Found(index, "similarity")
        return only_claim(plain_words, forms) or _mentioned(plain_words, [plain_words], forms) or OPEN
    text = section if len(section) <= 20_000 else f"{section[:2000]}\n{section[-18_000:]}"
    if cues.UNMARKED.fullmatch(text):
        return _read(closed(text.strip()), forms, corrected=False)
    text = closed(without_marks(text))
    return _read(text, forms, corrected=False) if text else OPEN


def _read(text: str, forms: Forms, *, corrected: bool) -> Found:
    if turned := cues.NOT_BUT.match(text):
        text = text[turned.end() :]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return OPEN
    if "?" in text and (affirmed := cues.AFFIRMED.fullmatch(text)) and (found := only_claim(affirmed.group(1), forms)):
        return found
    cued = cues.HAS_CUE.search(text)
    if cued and not corrected and (corrections := list(cues.CORRECTS.finditer(text))):
        found = _read(text[corrections[-1].end() :], forms, corrected=True)
        if found.choice is not None:
            return found
    if len(lines) == 1 and (alone := only_claim(text, forms)):
        return alone
    for read in _READ_IN_TURN if cued else _READ_WITHOUT_CUE:
        if stated := read(text, lines, forms):
            return stated
    return OPEN


def _stated(text: str, lines: list[str], forms: Forms) -> Found | None:
    """The last explicit statement: "the answer is B", "I choose B", "B is correct"."""
    places = [(m.end(), m.start(), True) for m in cues.STATES.finditer(text)] + [
        (m.end(), m.start(), True) for m in cues.CHOOSES.finditer(text)
    ]
    places += [(m.start(), m.end(), False) for m in cues.IS_RIGHT.finditer(text)]
    for place, other, before in sorted(places, key=lambda p: min(p[:2]), reverse=True)[:60]:
        start = min(place, other)
        clause = _clause_before(text, start)
        if before:
            if cues.NOT_STATED.search(clause) or _asks(text, start):
                continue
            found = claimed(text[place : place + 600], forms)
            if found and _is_past_belief(text, start, place):
                continue
        else:
            if _asks(text, start) or cues.PAST_CLAIM.match(text, other):
                continue
            found = subject_of(clause, text[max(0, start - 60) : start], forms)
        if found:
            return found
    return None


def _is_past_belief(text: str, start: int, end: int) -> bool:
    """Whether a cue is about an earlier belief: "at first I thought the answer was A"."""
    beliefs = [m.end() for m in cues.PAST_BELIEF.finditer(text, max(0, start - 200), start)]
    return bool((beliefs and not cues.TURNS.search(text, beliefs[-1], start)) or cues.PAST_CLAIM.match(text, end))


def _asks(text: str, at: int) -> bool:
    """Whether the sentence around a place is a question."""
    ends = [m.end() for m in cues.SENTENCE_END.finditer(text, max(0, at - 400), at)]
    start = ends[-1] if ends else max(0, at - 400)
    sentence = sentence_at(text, at).rstrip()
    return sentence.endswith("?") and bool(cues.ASKS.match(text[start : start + 80]))


def _clause_before(text: str, at: int) -> str:
    window = text[max(0, at - 200) : at]
    starts = [m.end() for m in cues.CLAUSE_START.finditer(window)]
    return window[starts[-1] :] if starts else window


def _options_listed(lines: list[str]) -> set[int]:
    """Indices of the lines that repeat the options: two or more in a row with consecutive letters."""
    letters = [m.group(1).upper() if (m := cues.OPTION_LINE.match(line)) and m.group(2).strip() else "" for line in lines]
    listed = set[int]()
    for i in range(1, len(lines)):
        if letters[i] and letters[i - 1] and ord(letters[i]) == ord(letters[i - 1]) + 1:
            listed |= {i - 1, i}
    return listed


def _on_a_line(text: str, lines: list[str], forms: Forms) -> Found | None:
    if len(lines) < 2:
        return None
    listed = _options_listed(lines)
    marked = [lines[i] for i in sorted(listed) if cues.MARKED_CORRECT.search(lines[i])]
    if len(marked) == 1 and (letter := cues.LETTER.match(marked[0])):
        return chosen(letter, "", forms)
    if len(listed) == len(lines):
        return OPEN
    found = {
        i: alone for i, line in enumerate(lines) if i not in listed and len(line) < 300 and (alone := only_claim(line, forms))
    }
    last = found.get(len(lines) - 1)
    if last is not None and last is not OPEN:
        return last
    named = {one for one in found.values() if one.choice is not None}
    if named and any(one.matched_by == "letter" for one in named):
        named = {one for one in named if one.matched_by == "letter"}
    return next(iter(named)) if len({one.choice for one in named}) == 1 else None


def _at_start(text: str, lines: list[str], forms: Forms) -> Found | None:
    """A letter that begins the section: "B because it rings", "(B) a bell", "B\\nIt is not a dog."."""
    if not cues.LONE_LETTER.search(lines[0][:60]) or 0 in _options_listed(lines):
        return None
    if " than " in lines[0] and cues.COMPARES_LETTERS.match(lines[0]):
        return None
    found = letter_of(lines[0], forms, cued=False)
    if found is None or found.choice is None:
        return found if len(_sentences(text)) == 1 and "left" not in text else None
    letter = cues.LETTER.match(lines[0])
    if letter and lines[0][letter.end() :].lstrip(" .)]")[:1] in ("?", "？"):
        return None
    rejected = cues.REJECTED.match(lines[0], letter.end() if letter else 0)
    return None if rejected and not re.search(r"[,;]|because|since", lines[0][: rejected.end()]) else found


def _at_end(text: str, lines: list[str], forms: Forms) -> Found | None:
    """A letter that ends the section, after a comma or an adverb, or as a sentence of its own; or ", so yes"."""
    tail = lines[-1][-120:]
    letter = cues.END_LETTER.search(tail)
    if letter is not None and not cues.NO_END.search(tail):
        return chosen(letter, "", forms)
    if letter := cues.LETTER_SENTENCE.search(tail):
        return chosen(letter, "", forms)
    if "yes" not in forms.by_plain and "no" not in forms.by_plain:
        return None
    last = cues.ENDS_IN_YES_OR_NO.search(tail)
    index = forms.by_words.get((last.group(1).casefold(),)) if last else None
    return None if index is None else Found(index, "choice_text")


def _sentences(text: str) -> list[tuple[int, str]]:
    start, out = 0, []
    for end in cues.SENTENCE_END.finditer(text):
        out.append((start, text[start : end.end()]))
        start = end.end()
    out.append((start, text[start:]))
    return [(at, sentence) for at, sentence in out if sentence.strip()]


def _is_question(sentence: str) -> bool:
    return sentence.rstrip().endswith("?")


def _concluded(text: str, lines: list[str], forms: Forms) -> Found | None:
    """The last sentence that concludes ("Therefore, ...", "It's ..."), if no later sentence names another choice."""
    subjects = {m.end(): m for m in cues.SUBJECT_IS.finditer(text)}
    ends = {m.end() for pattern in (cues.CONCLUDES, cues.POINTS) for m in pattern.finditer(text)}
    places = sorted(ends | subjects.keys(), reverse=True)[:40]
    for place in places:
        claim = sentence_at(text, place)
        start = max(
            (m.end() for m in cues.SENTENCE_END.finditer(text, max(0, place - 300), place)), default=max(0, place - 300)
        )
        whole = text[start:place] + claim
        if (
            _is_question(claim)
            or cues.NOT_STATED.search(_clause_before(text, place))
            or cues.REFUSES.search(_clause_before(text, place) + claim)
        ):
            continue
        subject = subjects.get(place)
        if subject and not subject.group(1):
            if (found := only_claim(claim, forms)) and not _is_past_belief(text, place, place):
                return found
            continue
        turned = cues.NOT_BUT.match(claim)
        found = letter_of(claim[turned.end() :] if turned else claim, forms, cued=False)
        if found and subject and cues.NAMES_NOTE.search(subject.group()):
            return found if found.choice == forms.by_words.get(bare_words(claim)) else OPEN
        if found is None or (found.choice is not None and cues.REJECTED.match(claim, 1) and "," not in claim):
            index = about_one(mentions_of(before_reason(whole), forms))
            if index is None and cues.TAKES_BACK.search(text, start, place):  # "I thought of jazz, but it is rock"
                index = about_one(mentions_of(before_reason(claim), forms))
            if index is None and (index := forms.by_words.get(bare_words(claim))) is None:
                continue
            found = Found(index, "similarity")
            if mentions_of(text[place + len(claim) :][:4000], forms).named - {index}:
                continue
        if not _is_past_belief(text, place, place):
            return found
    return None


def _mentioned(text: str, lines: list[str], forms: Forms) -> Found | None:
    """Without any final statement: the one choice that the whole text names or resembles."""
    sentences = _sentences(text)
    if len(sentences) == 1:
        sentence = sentences[0][1]
        if _is_question(sentence) or cues.REPEATS_OPTIONS.search(sentence):
            return OPEN
        mentions = mentions_of(sentence, forms)
        if not mentions.named and not mentions.denied and not mentions.undecided:
            index = most_similar(sentence, forms)
            if index is None or cues.PLAIN_DENIAL.search(sentence) or cues.REFUSES.search(sentence):
                return OPEN
            return Found(index, "similarity")
        if len(sentence) < 50 and cues.JOINED.match(sentence):
            return OPEN  # "guitar and piano": one of the two may be no choice
        index = about_one(mentions)
        if index is None and len(mentions.named) > 1:
            index = about_one(mentions_of(before_reason(sentence), forms))
        if index is not None and _is_past_belief(sentence, len(sentence.rstrip(" .!")), len(sentence)):
            return OPEN
        refused = (
            index is not None
            and cues.REFUSES.search(sentence)
            and not any(cues.REFUSES.search(choice) for choice in forms.plains)
        )
        return OPEN if index is None or refused else Found(index, "similarity")
    if len(text) > 200 and text.rstrip()[-1:] not in ".!?)]\"'":
        return OPEN
    if cues.REFUSES.search(text) and not any(cues.REFUSES.search(choice) for choice in forms.plains):
        return OPEN
    named, undecided = set[int](), False
    for _, sentence in sentences[:400]:
        if not _is_question(sentence) and not cues.REPEATS_OPTIONS.search(sentence):
            mentions = mentions_of(sentence, forms)
            named |= mentions.named
            undecided |= mentions.undecided and bool(mentions.named or mentions.denied)
    return Found(named.pop(), "similarity") if len(named) == 1 and not undecided else OPEN


_READ_IN_TURN = (_stated, _on_a_line, _at_start, _concluded, _at_end, _mentioned)
_READ_WITHOUT_CUE = (_on_a_line, _at_start, _at_end, _mentioned)

"""
Filters of the questions that a teacher wrote: which of them a student can learn from.

`FILTERS` apply in this order, and the outcome of a question is that of the first filter that it does not pass, or `built`.
The ledger, the printed table and the card iterate the list: to add a filter, add it here. A question is filtered by its text
alone, except by the last filters, which look at the other questions of its video, and at how often it is answered by models
that have not got the clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from sightsound.data import schema
from sightsound.method.answer_reading.choices import bare_words, root_of
from sightsound.method.question_writing import READING_OUTCOMES, WrittenQuestion


SAME_CHOICES, ASKS_FOR_SIGHT, SAME_QUESTION = "same_choices", "asks_for_sight", "same_question"
ANSWERABLE = "answerable_without_clip"

# Two questions about one segment are near-duplicates if they have at least this share of their words in common, choices
# included. Two of "Which of these is heard in the video?" that differ in one choice have 11 of 13 words in common.
NEAR_DUPLICATE_FROM = 0.8

# Words that say no more than that something is heard in the video. Questions whose other words differ on both sides ask for
# different things, however many words they share: "Which is heard first?" and "... last?", "How many dogs ..." and "... cats".
_ASKING = frozenset(
    root_of(word)
    for word in bare_words(
        "which what who how where why a an the of in on at to and or is are was were be can could do does did you we i it this "
        "that these those there kind type sound noise hear heard listen audible play present occur happen make made video clip "
        "audio recording scene following choice"
    )
)

# What can only be seen. Each part needs a word that is about looks; words that are about sounds as well ("glasses" clink, a
# "hat" is part of a drum kit, "background" has noise, someone is "reading" aloud) are left out, or need a second word beside
# them.
_COLOURS = r"black|white|red|green|blue|yellow|orange|purple|violet|pink|brown|gr[ae]y|beige|golden|silver"
_NAMED_BY_COLOUR = "noise|notes?|winged|tailed|bellied|breasted|metal|bears?|whales?|retrievers?|juice"
_CLOTHES = (
    r"t-?shirts?|shirts?|blouses?|jackets?|coats?|trousers|pants|jeans|skirts?|sweaters?|hoodies?|uniforms?|costumes?|outfits?|"
    r"clothes|clothing|garments?|sunglasses|necklaces?"
)
SIGHT = re.compile(
    "|".join(
        (
            # "tone colour" and "timbral colour" are about sound
            r"\b(?<!tone )(?<!sound )(?<!timbral )(?<!vocal )colou?r(?:s|ed|ful)?\b",
            # A colour before a noun: "the red car". Not "red-winged blackbird", "white noise", "a brown bear"; nor with
            # a capital: "the Red Hot Chili Peppers" are a name.
            rf"\b(?:the|an?|in|with) (?-i:{_COLOURS})(?![- ](?:{_NAMED_BY_COLOUR}))\b",
            r"\b(?:wear(?:s|ing)?|worn|dressed)\b",
            rf"\b(?:{_CLOTHES})\b",
            # Text in the picture.
            r"\b(?:written|printed|subtitles?|captions?|logos?|watermarks?|on-?screen text|handwriting)\b",
            r"\b(?:text|words?|letters?|numbers?|name) (?:is |are )?(?:on|shown|displayed|visible|seen)\b",
            r"\b(?:sign|banner|poster|label|screen|board|placard)s?\b[^.?]{0,40}\b(?:says?|reads?|shows?)\b",
            r"\bdoes the (?:sign|banner|poster|label|screen|board|placard) (?:say|read|show)\b",
            # Looks as such.
            r"\b(?:visible|visibly|visually|appearance|hairstyles?|facial|facing|pictured|depicted|shown|displayed)\b",
            r"\b(?:be|is|are|was|were|you) (?:see|seen)\b",
            r"\blook(?:s|ing)? (?:like|at|into|towards?)\b",
            r"\bhair\b",
            r"\b(?:gestures?|gesturing|posture)\b",
            r"\bin (?:the |a )?(?:his|her|their|\w+'s) (?:left |right )?hands?\b",
        )
    ),
    re.IGNORECASE,
)
_ONLY_COLOUR = re.compile(rf"(?:(?:light|dark|bright|pale) )?(?:{_COLOURS})", re.IGNORECASE)


@dataclass
class Facts:
    """
    What is known beside the text of a question.

    Args:
        in_segment (`list`): The questions about the same segment that come before it and are kept.
        in_video (`set`): Keys (`key_of`) of the questions about the same video that are kept.
        guessed (`float`, *optional*): The larger share of tries without the clip that were right; None where nobody tried.
        max_guessed (`float`): A question is dropped if `guessed` is above this share.
    """

    in_segment: list[WrittenQuestion] = field(default_factory=list)
    in_video: set[tuple[object, ...]] = field(default_factory=set)
    guessed: float | None = None
    max_guessed: float = 1.0


@dataclass(frozen=True, kw_only=True)
class QuestionFilter:
    """
    A condition that a question has to meet.

    Args:
        outcome (`str`): The outcome of a question that does not pass.
        meaning (`str`): Explains the outcome on the card.
        problem (`Callable`): From a question and its facts to what was seen, for the ledger; None where it passes.
    """

    outcome: str
    meaning: str
    problem: Callable[[WrittenQuestion, Facts], str | None]


def _same_choices(question: WrittenQuestion, _: Facts) -> str | None:
    words = [bare_words(choice) for choice in question.choices]
    for i, first in enumerate(words):
        for j, second in enumerate(words):
            if i != j and _is_within(first, second):
                return f"'{question.choices[i]}' is within '{question.choices[j]}'"
    return None


def _is_within(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether the second has the words of the first, in one piece. An empty first is within everything."""
    return any(second[start : start + len(first)] == first for start in range(len(second) - len(first) + 1))


def _asks_for_sight(question: WrittenQuestion, _: Facts) -> str | None:
    if found := SIGHT.search(question.text):
        return f"'{found[0]}' in '{question.text}'"
    if all(_ONLY_COLOUR.fullmatch(choice) for choice in question.choices):
        return f"the choices are colours: {', '.join(question.choices)}"
    return None


def key_of(question: WrittenQuestion) -> tuple[object, ...]:
    """Equal for questions with the same words, choices in any order, and answer."""
    words = [bare_words(choice) for choice in question.choices]
    return bare_words(question.text), tuple(sorted(words)), words[question.answer]


def _same_question(question: WrittenQuestion, facts: Facts) -> str | None:
    for other in facts.in_segment:
        mine, others = _all_words(question), _all_words(other)
        is_near = len(mine & others) >= NEAR_DUPLICATE_FROM * len(mine | others)
        asks, other_asks = _asked_words(question.text), _asked_words(other.text)
        asks_differently = bool(asks - other_asks and other_asks - asks)
        in_other_words = asks == other_asks and key_of(question)[1:] == key_of(other)[1:]  # the same choices and answer
        if in_other_words or (is_near and not asks_differently):
            return f"nearly '{other.text}' about the same segment"
    return "a question about another segment of the video is the same" if key_of(question) in facts.in_video else None


def _all_words(question: WrittenQuestion) -> set[str]:
    return {word for text in (question.text, *question.choices) for word in bare_words(text)}


def _asked_words(text: str) -> set[str]:
    """The words about what a question asks for: "first", "dog"."""
    return {root_of(word) for word in bare_words(text)} - _ASKING


def _answerable(_: WrittenQuestion, facts: Facts) -> str | None:
    if facts.guessed is None or facts.guessed <= facts.max_guessed:
        return None
    return f"right in {facts.guessed:.0%} of the tries, at most {facts.max_guessed:.0%} are allowed"


OF_TEXT = [
    QuestionFilter(
        outcome=SAME_CHOICES,
        meaning="two choices are the same, or one contains the other",
        problem=_same_choices,
    ),
    QuestionFilter(
        outcome=ASKS_FOR_SIGHT,
        meaning="it asks for what can only be seen: colours, clothes, written text, looks",
        problem=_asks_for_sight,
    ),
]
OF_OTHERS = [
    QuestionFilter(
        outcome=SAME_QUESTION,
        meaning="nearly the same as an earlier question about the segment, or the same as one about its video",
        problem=_same_question,
    ),
    QuestionFilter(
        outcome=ANSWERABLE,
        meaning="models without the clip answer it too often",
        problem=_answerable,
    ),
]
FILTERS = [*OF_TEXT, *OF_OTHERS]


def dropped_by(question: WrittenQuestion, facts: Facts, filters: list[QuestionFilter]) -> tuple[str, str] | None:
    """The outcome and what was seen, of the first filter that a question does not pass; None where it passes all."""
    for each in filters:
        if seen := each.problem(question, facts):
            return each.outcome, seen
    return None


def outcome_meanings() -> dict[str, str]:
    """What each outcome of a question means, in the order in which they are decided."""
    failures = {
        schema.REFUSED: "the teacher or its server refused",
        schema.BAD_RESPONSE: "the server sent no chat completion",
        schema.SERVER_ERROR: "the server failed at this request",
        schema.MISSING_MEDIA: "no clip of that name in the media folder",
        schema.CORRUPT_MEDIA: "the clip cannot be decoded",
        schema.NO_VIDEO: "the clip has no picture",
    }
    kept = {schema.BUILT: "in the dataset; of a segment: at least one of its questions is"}
    return kept | failures | READING_OUTCOMES | {each.outcome: each.meaning for each in FILTERS}

"""How a teacher's reply is read, and which of its questions are kept."""

import json

import pytest

from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.method import question_writing as writing
from sightsound.method.question_filters import (
    ASKS_FOR_SIGHT,
    FILTERS,
    SAME_CHOICES,
    SAME_QUESTION,
    Facts,
    dropped_by,
    key_of,
    outcome_meanings,
)
from sightsound.method.question_writing import SHARES, WrittenQuestion, draw_types, parse_shares, read_reply, write_prompt
from tests.support.malformed_replies import GOOD, MALFORMED
from tests.support.segments import question, reply


def outcomes(text: str, count: int = 1, finish_reason: str = "stop") -> list[str | None]:
    return [slot.outcome for slot in read_reply(text, finish_reason, count, SHARES)]


@pytest.mark.parametrize(("outcome", "text"), [(outcome, text) for outcome, texts in MALFORMED.items() for text in texts])
def test_a_malformed_reply_has_its_outcome_and_says_what_was_seen(outcome: str, text: str) -> None:
    (slot,) = read_reply(text, "stop", 1, SHARES)
    assert slot.outcome == outcome and slot.question is None
    assert slot.detail and len(slot.detail) < 600
    slot.detail.encode()


def test_every_outcome_of_reading_has_a_case_and_a_meaning() -> None:
    assert {*MALFORMED, writing.CUT, writing.EXTRA_QUESTION} == writing.READING_OUTCOMES.keys()
    assert {*writing.READING_OUTCOMES, *(each.outcome for each in FILTERS)} < outcome_meanings().keys()


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\ufeff\n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```json\r\n{GOOD}\r\n```\r\n",
        f"Here are the questions:\n```\n{GOOD}\n```\nThey are about sound.",
        f"<think>The bell {{rings}}.</think>\n{GOOD}",
        json.dumps(json.loads(GOOD), indent=4),
        reply(question(1, answer="A")),
        reply(question(1, answer="(a)")),
        reply(question(1, answer="A. A Bell of 1")),
        reply(question(1, answer=" the bell of 1 ", choices=["the bell of 1", "two dogs", "heavy rain", "an engine"])),
        reply(question(1, choices=["A. a bell of 1", "B. two dogs", "C. heavy rain", "D. an engine"], answer="A. a bell of 1")),
    ],
)
def test_a_good_reply_is_read(text: str) -> None:
    (slot,) = read_reply(text, "stop", 1, SHARES)
    assert slot.outcome is None and slot.question is not None
    assert slot.question.answer == 0 and slot.question.choices[1:] == ("two dogs", "heavy rain", "an engine")


def test_each_question_of_a_reply_is_read_for_itself() -> None:
    text = reply(question(1), question(2, answer="nothing"), question(3), question(4))
    assert outcomes(text, 3) == [None, schema.ANSWER_NOT_A_CHOICE, None, writing.EXTRA_QUESTION]
    assert outcomes(text, 5)[3:] == [None, writing.MISSING_QUESTION]
    assert outcomes(text, 2, "length") == [writing.CUT] * 2
    assert outcomes("I can't help with that.", 2, "content_filter") == [schema.REFUSED] * 2


def written(text: str = "Which sound is heard?", choices: str = "a dog|a bell|rain|a car", answer: int = 0) -> WrittenQuestion:
    return WrittenQuestion("which", text, tuple(choices.split("|")), answer)


def outcome_of(question: WrittenQuestion, **facts) -> str | None:
    dropped = dropped_by(question, Facts(**facts), FILTERS)
    return dropped and dropped[0]


@pytest.mark.parametrize(
    "text",
    [
        "What colour is the car that honks?",
        "Which instrument does the man in the red shirt play?",
        "What is the woman wearing while she sings?",
        "Which word is written on the drum?",
        "What does the sign say when the bell rings?",
        "Which logo is on the guitar?",
        "How many people are visible?",
        "Which animal can be seen first?",
        "What does the singer look like?",
        "What hair has the person who speaks?",
        "Where is the speaker looking at?",
        "Which of these is displayed while the engine runs?",
        "What text is shown on the screen?",
        "Which vehicle in the video is blue, the one with a blue roof or not?",
    ],
)
def test_what_only_eyes_know_is_dropped(text: str) -> None:
    assert outcome_of(written(text)) == ASKS_FOR_SIGHT


@pytest.mark.parametrize(
    "text",
    [
        "Which sound is heard in the background?",
        "Does the voice have a bright tone color?",
        "What sounds like a bell after the dog barks?",
        "How often does the red-winged blackbird call?",
        "Is there white noise before the music begins?",
        "Which part of the drum kit is hit last, the hi-hat or the snare?",
        "What clinks, the glasses or the coins?",
        "Who is reading aloud?",
        "Why does the crowd cheer?",
        "Where was this recorded, to judge by the echo?",
        "Which animal is heard near the greenhouse?",
    ],
)
def test_what_ears_know_is_kept(text: str) -> None:
    assert outcome_of(written(text)) is None


def test_choices_that_are_colours_are_for_eyes() -> None:
    assert outcome_of(written("Which car honks first?", "red|dark blue|green|white")) == ASKS_FOR_SIGHT
    assert outcome_of(written("Which band plays?", "Black Sabbath|Deep Purple|Pink Floyd|Blue")) is None


@pytest.mark.parametrize(
    "choices",
    [
        "a dog|the Dog|rain|a car",
        "a dog|a dog.|rain|a car",
        "guitar|bass guitar|rain|a car",
        "2|two|3|4",
        "rain|heavy rain and wind|a|b",
    ],
)
def test_choices_that_are_the_same_or_contain_each_other(choices: str) -> None:
    assert outcome_of(written(choices=choices)) == SAME_CHOICES


@pytest.mark.parametrize("choices", ["one|two|three|four", "2|12|20|21", "dog|dogfish|cat|car", "a man|a woman|a boy|a girl"])
def test_choices_that_only_look_alike(choices: str) -> None:
    assert outcome_of(written(choices=choices)) is None


def test_near_duplicates_of_a_segment_and_repeated_questions_of_a_video() -> None:
    first = written("Which of these is heard in the video?", "bell|dog|rain|car")
    nearly = written("Which of these is heard in the video?", "bell|dog|rain|owl", 1)
    other = written("Which of these is heard in the video?", "violin|flute|drum|harp")
    assert outcome_of(nearly, in_segment=[first]) == SAME_QUESTION
    assert outcome_of(other, in_segment=[first]) is None
    shuffled = written("which of these is heard in the video", "car|rain|bell|dog", 2)
    assert outcome_of(shuffled, in_video={key_of(first)}) == SAME_QUESTION
    assert outcome_of(shuffled._replace(answer=0), in_video={key_of(first)}) is None, "another answer is another question"


def test_types_are_drawn_by_share_and_by_segment_alone() -> None:
    shares = parse_shares(["which=3", "why=1"])
    drawn = [kind for i in range(1000) for kind in draw_types(f"s{i}", 2, shares, seed=0)]
    assert 0.7 < drawn.count("which") / len(drawn) < 0.8 and set(drawn) == {"which", "why"}
    assert draw_types("s1", 9, shares, 0) == draw_types("s1", 9, shares, 0) != draw_types("s1", 9, shares, 1)
    turned = parse_shares(["why=1", "which=3"])
    assert draw_types("s1", 9, turned, 0) == draw_types("s1", 9, shares, 0), "the order of the flag decides nothing"
    assert abs(sum(SHARES.values()) - 1) < 1e-9
    assert "1. why: " in write_prompt("{num_questions}\n{types}", ["why", "which"])


@pytest.mark.parametrize(
    "given", [["colour=1"], ["which"], ["which=0"], ["which=-1"], ["which=x"], ["which=nan"], ["why=1", "why=2"]]
)
def test_shares_that_cannot_be_used(given: list[str]) -> None:
    with pytest.raises(InputError, match="--types"):
        parse_shares(given)

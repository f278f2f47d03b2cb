"""Which questions about one segment are near-duplicates, and which words ask for what only eyes know."""

import pytest

from sightsound.method.question_filters import ASKS_FOR_SIGHT, FILTERS, SAME_QUESTION, Facts, dropped_by
from sightsound.method.question_writing import WrittenQuestion


SOUNDS = ("a dog barking", "a church bell", "heavy rain", "a car engine")
COUNTS = ("1", "2", "3", "4")


def written(text: str, choices: tuple[str, ...] = SOUNDS, answer: int = 0) -> WrittenQuestion:
    return WrittenQuestion("which", text, choices, answer)


def outcome_of(question: WrittenQuestion, *before: WrittenQuestion) -> str | None:
    dropped = dropped_by(question, Facts(in_segment=list(before)), FILTERS)
    return dropped and dropped[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (written("Which sound is heard first in the video?"), written("Which sound is heard last in the video?", answer=1)),
        (written("How many dogs are heard in the video?", COUNTS), written("How many cats are heard in the video?", COUNTS)),
        (written("Why does the crowd cheer in the video?"), written("Why does the dog bark in the video?", answer=2)),
        (written("Which is louder, the bell or the rain?"), written("Which is longer, the bell or the rain?")),
    ],
)
def test_questions_that_ask_for_different_things_are_no_duplicates(first: WrittenQuestion, second: WrittenQuestion) -> None:
    assert outcome_of(second, first) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (written("Which sound is heard first?"), written("Which sound can be heard first in the video?")),
        (written("Which sound is heard in the video?"), written("Which of these sounds is audible in this clip?")),
        (written("Which sound is heard?"), written("Which sound is heard?", (*SOUNDS[:3], "a bus engine"))),
        (written("How often does the bell ring?", COUNTS, 1), written("How often does a bell ring?", COUNTS[::-1], 2)),
    ],
)
def test_questions_in_other_words_are_duplicates(first: WrittenQuestion, second: WrittenQuestion) -> None:
    assert outcome_of(second, first) == SAME_QUESTION


@pytest.mark.parametrize(
    "text",
    [
        "What does the man in black play?",
        "What gesture does the drummer make before the beat?",
        "What is in the woman's left hand while she sings?",
        "Which instrument does the red-haired singer play?",
    ],
)
def test_looks_are_for_eyes(text: str) -> None:
    assert outcome_of(written(text)) == ASKS_FOR_SIGHT


@pytest.mark.parametrize(
    "text",
    ["Is the Red Hot Chili Peppers song heard first?", "How often does a brown bear growl?", "Who claps their hands?"],
)
def test_names_and_sounds_are_for_ears(text: str) -> None:
    assert outcome_of(written(text)) is None

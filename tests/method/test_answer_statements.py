"""Final statements, kind by kind: what is taken back, excepted, asked or said in short."""

import pytest

from sightsound.method.answers import match_choice, parse_answer


CHOICES = ["dog", "bell", "fire engine", "acoustic guitar"]


@pytest.mark.parametrize("text", ["It is B rather than option C.", "B, rather than A", "not A, B", "not a dog, a bell"])
def test_what_is_set_against_another_choice_is_an_answer(text):
    assert match_choice(text, CHOICES).index == 1


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("At first I thought the answer was A, but it is B.", 1),
        ("I had assumed the answer was the dog; it turned out to be the bell.", 1),
        ("The obvious answer is A, but that is wrong.", None),
        ("I used to think the answer was C.", None),
        ("My initial answer was A.", None),
    ],
)
def test_a_belief_that_is_taken_back_is_no_answer(text, index):
    assert match_choice(text, CHOICES).index == index


@pytest.mark.parametrize(
    "text",
    ["Anything but the dog", "all but the bell", "everything except the dog", "something other than a dog", "Not like a dog"],
)
def test_an_exception_is_no_answer(text):
    assert match_choice(text, CHOICES).index is None


@pytest.mark.parametrize(("text", "index"), [("B? or C?", None), ("C?", None), ("(A)? (B)?", None), ("Which one? B.", 1)])
def test_a_letter_in_a_question_is_no_answer(text, index):
    assert match_choice(text, CHOICES).index == index


def test_a_part_that_sets_one_choice_apart_is_that_choice():
    speech = ["Male speech", "Female speech", "Child speech"]
    assert match_choice("Female", speech).index == 1
    assert match_choice("Speech", speech).index is None
    assert match_choice("fire", ["fire engine", "bell"]).index is None, "no choice shares the rest"
    assert match_choice("fire", ["fire engine", "jet engine"]).index == 0
    assert match_choice("bass", ["violin", "double bass"]).index is None
    assert match_choice("none", ["bell", "None of the above"]).index == 1
    assert match_choice("minor", ["A minor", "E minor"]).index is None, "the A of a key is no article"


@pytest.mark.parametrize("text", ["The sound in the clip is B.", "That would be B.", "<answer>(B", "Ans. B", "「B」", "（Ｂ）"])
def test_a_letter_is_read_after_any_subject_and_in_any_brackets(text):
    assert parse_answer(text, CHOICES).index == 1


def test_a_note_is_no_letter_of_a_choice():
    assert match_choice("The note is B.", ["A", "B", "C"]).index == 1
    assert match_choice("The note is B.", CHOICES).index is None
    assert match_choice("The note is B.", ["B", "C", "D"]).index is None, "the note or the letter"


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("答案是B", 1),
        ("正确答案是 (C)。", 2),
        ("排除A，选B", 1),
        ("A错误，B正确", 1),
        ("答案不是B", None),
        ("B或C", None),
        ("可能是B", None),
    ],
)
def test_cues_in_chinese_are_read_as_in_english(text, index):
    assert match_choice(text, CHOICES).index == index

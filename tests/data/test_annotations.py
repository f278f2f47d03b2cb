"""Choices that carry their own letters: taken off where they are read, for builders and scoring alike."""

import json

import pytest

from evaluation.benchmarks import read_annotations
from sightsound.benchmarks import avqa, mmau
from sightsound.data.annotations import expect_choices
from sightsound.method.answers import parse_answer
from sightsound.method.prompts import question_text
from tests.support.avqa import annotation
from tests.support.mmau import annotation as mmau_annotation


TEXTS = ["Dog", " a bell ", "Rooster", "3"]
PLAIN = ["Dog", "a bell ", "Rooster", "3"]


@pytest.mark.parametrize("style", ["{}. {}", "({}) {}", "{}) {}", "{}: {}", " {}.  {}"])
@pytest.mark.parametrize("letters", ["ABCD", "abcd"])
def test_letters_before_all_choices_are_taken_off(style, letters):
    lettered = [style.format(letter, text) for letter, text in zip(letters, TEXTS, strict=True)]
    row = avqa.to_row(annotation(1, "a", multi_choice=lettered, answer=2))
    assert (row["choices"], row["answer_text"]) == (PLAIN, "Rooster")
    assert "C. Rooster" in question_text(row["question"], row["choices"], "{choices}")
    assert parse_answer("The answer is Rooster.", row["choices"]).index == 2


@pytest.mark.parametrize(
    "choices",
    [
        ["A. Dog", "Bell", "Siren", "Drum"],
        ["A. Dog", "B. Bell", "C. Siren", "Drum"],
        ["B. Dog", "A. Bell", "C. Siren", "D. Drum"],
        ["A. Dog", "(B) Bell", "C: Siren", "D) Drum"],
        ["A. Dog", "b. Bell", "C. Siren", "d. Drum"],
        ["A:maj/1", "B:min/3", "C:maj", "D:7"],
        ["A.Dog", "B.Bell", "C.Siren", "D.Drum"],
        ["A dog", "B flat", "C sharp", "D minor"],
        ["A.", "B.", "C.", "D."],
        ["B. Bach", "J. Brahms", "C. Bach", "D. Duke"],
    ],
)
def test_other_beginnings_are_a_part_of_the_choice(choices):
    assert expect_choices(choices, 4, 4) == choices


@pytest.mark.parametrize("answer", ["B) Rooster", "Rooster"])
def test_mmaus_answer_is_found_with_its_letter_and_without(answer, tmp_path):
    question = mmau_annotation("q0", choices=["A) Dog", "B) Rooster"], answer=answer)
    row = mmau.to_row(question)
    assert (row["choices"], row["answer"], row["answer_text"]) == (["Dog", "Rooster"], 1, "Rooster")
    (tmp_path / "own.json").write_text(json.dumps([question]))
    assert read_annotations("mmau", str(tmp_path / "own.json"), allow_unpinned=True)[0] == [row]

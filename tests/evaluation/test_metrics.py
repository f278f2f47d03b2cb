"""Official rules: MMAU's and MMAR's on every row, against frozen decisions of the published ones; MUSIC-AVQA's; metrics."""

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evaluation.benchmarks import read_annotations
from evaluation.scoring.protocols import OFFICIAL, PAPER, Decision, decide_all
from sightsound.benchmarks import get_benchmark, mmau, music_avqa
from sightsound.cli import InputError
from sightsound.data.annotations import read_annotations as read_file
from sightsound.data.schema import LETTERS
from tests.support.tiny import REPO


METRICS = REPO / "evaluation" / "metrics"
LABELLED = REPO / "tests" / "labelled"
FROZEN = {name: json.loads((LABELLED / f"{name}_official_decisions.json").read_text()) for name in ("mmau", "mmar")}
FILES = {"mmau": "mmau/mmau-test-mini.json", "mmar": "mmar/MMAR-meta.jsonl"}


def letter_of(row: dict) -> str:
    return LETTERS[row["choices"].index(row["answer"])]


def distractors(row: dict) -> list[str]:
    return [choice for choice in row["choices"] if choice != row["answer"]]


# What is answered to an official annotation; decisions are in the order of the rows, and of a row's outputs.
CASES: dict[str, Callable[[dict], list[str]]] = {
    "gold text": lambda row: [row["answer"]],
    "letter and gold text": lambda row: [f"({letter_of(row)}) {row['answer']}"],
    "letter only": lambda row: [letter_of(row)],
    "every wrong choice": distractors,
    "gold text plus a distractor": lambda row: [f"{row['answer']} {other}" for other in distractors(row)],
    "empty": lambda row: [""],
}


def random_outputs(row: dict, count: int) -> Iterator[str]:
    """Strings of the words of a row's choices: one choice's, in any order, often with one missing or one of another added."""
    rng = random.Random(row["id"])
    words = [re.findall(r"\w+", choice) for choice in row["choices"]]
    vocabulary = [word for each in words for word in each]
    for _ in range(count):
        drawn = rng.sample(each := rng.choice(words), len(each))
        if rng.random() < 0.3:
            drawn = drawn[1:]
        if rng.random() < 0.3:
            drawn.append(rng.choice(vocabulary))
        yield rng.choice((" ", ", ", "-")).join(drawn)


@pytest.fixture(scope="module")
def files(real_data) -> dict[str, Path]:
    return {name: real_data / "annotations" / file for name, file in FILES.items()}


@pytest.fixture(scope="module")
def official(files) -> dict[str, list[dict]]:
    return {name: read_file(str(file), "") for name, file in files.items()}


@pytest.mark.parametrize("name", FILES)
def test_the_frozen_decisions_are_about_the_pinned_file(name, files):
    digest = hashlib.sha256(files[name].read_bytes()).hexdigest()
    assert digest == FROZEN[name]["annotations_sha256"] == get_benchmark(name).pinned.sha256


def decisions(name: str, official: dict[str, list[dict]], outputs: Callable[[dict], list[str]]) -> str:
    """What a benchmark's rule decides on outputs to each official annotation, with its choices as they are in the file."""
    decide = get_benchmark(name).official_rule.decide
    asked = ((row | {"answer_text": row["answer"]}, output) for row in official[name] for output in outputs(row))
    return "".join("1" if decide(output, row) else "0" for row, output in asked)


def frozen(case: dict) -> str:
    packed = int.from_bytes(base64.b64decode(case["bits"]), "big")
    return f"{packed:b}"[1:]  # the first one keeps the zeros that follow it


@pytest.mark.parametrize("case", [*CASES, "2 random strings"])
@pytest.mark.parametrize("name", FILES)
def test_official_decisions_are_the_frozen_ones_on_every_row(name, official, case):
    outputs = CASES.get(case) or (lambda row: random_outputs(row, 2))
    decided, expected = decisions(name, official, outputs), FROZEN[name]["cases"][case]
    assert decided == frozen(expected)
    assert (len(decided), decided.count("1")) == (expected["decisions"], expected["accepted"])


@pytest.mark.storm
@pytest.mark.parametrize("name", FILES)
def test_official_decisions_are_the_frozen_ones_on_two_thousand_strings_for_every_row(name, official):
    decided = decisions(name, official, lambda row: random_outputs(row, 2000))
    expected = FROZEN[name]["cases"]["2000 random strings"]
    assert (len(decided), decided.count("1")) == (expected["decisions"], expected["accepted"])
    assert hashlib.sha256(decided.encode()).hexdigest() == expected["sha256"]


# Of the 1,000 questions, how many right choices with their letter are rejected, and how many accept a wrong choice.
LIMITS = {"mmau": (33, 9), "mmar": (15, 20)}


@pytest.mark.parametrize("name", FILES)
def test_the_official_rule_has_its_known_limits(name, official):
    def decide(output: str, row: dict) -> bool | None:
        return get_benchmark(name).official_rule.decide(output, row | {"answer_text": row["answer"]})

    rejected = [row for row in official[name] if not decide(CASES["letter and gold text"](row)[0], row)]
    accepted = [row for row in official[name] if any(decide(choice, row) for choice in distractors(row))]
    assert (len(rejected), len(accepted)) == LIMITS[name]


def test_a_letter_counts_where_another_choice_holds_it_as_a_word():
    assert mmau.decide("(A) Man", "Man", ["Man", "Woman", "Child", "Robot"])
    assert mmau.decide("(A) Man", "Man", ["Man", "A woman"]) is False


WRITTEN = ("({letter}) {text}", "{letter}", "<think>I hear it.</think><answer>{text}</answer>")
# How many right answers the official rule and the paper's protocol take in each form. Three of MMAU's answers are a letter,
# such as the note D: the paper's protocol reads a lone letter as an option.
TAKEN = {"mmau": ((967, 1000), (2, 1000), (1000, 997)), "mmar": ((985, 1000), (0, 1000), (1000, 1000))}


@pytest.mark.parametrize("name", FILES)
def test_the_paper_s_protocol_takes_what_the_official_rule_rejects(name, files):
    rows, _ = read_annotations(name, str(files[name]), allow_unpinned=False)
    for write, expected in zip(WRITTEN, TAKEN[name], strict=True):
        outputs = [write.format(letter=LETTERS[row["answer"]], text=row["answer_text"]) for row in rows]
        decided = decide_all(name, [OFFICIAL, PAPER], outputs, rows)
        assert tuple(sum(decision.correct for decision in decided[rule]) for rule in (OFFICIAL, PAPER)) == expected


QUESTION = {"id": "1", "choices": ["Man", "Woman"], "answer": 0, "answer_text": "Man"}


def test_the_answer_is_extracted_before_any_rule():
    output = "<think>A woman, or a man?</think><answer>man</answer>"
    decided = decide_all("mmau", [OFFICIAL, PAPER], [output, "<think>A man.", "", None], [QUESTION] * 4)
    assert decided[OFFICIAL] == [Decision(True, "words"), *[Decision(False, "none")] * 3]
    assert [decision.matched_by for decision in decided[PAPER]] == ["choice_text", "none", "none", "none"]


def test_the_same_answer_to_another_question_is_decided_anew():
    other = {"id": "2", "choices": ["Woman", "Man"], "answer": 0, "answer_text": "Woman"}
    decided = decide_all("mmau", [OFFICIAL, PAPER], ["Man", "Man", "Man"], [QUESTION, other, QUESTION])
    assert [decision.correct for decision in decided[OFFICIAL]] == [True, False, True]
    assert [decision.correct for decision in decided[PAPER]] == [True, False, True]


def test_a_benchmark_without_an_official_protocol_says_so():
    with pytest.raises(InputError, match="avqa has no protocol 'official'; expected paper"):
        decide_all("avqa", [OFFICIAL], ["Man"], [QUESTION])


def test_music_avqa_is_matched_over_its_forty_two_words():
    assert len(music_avqa.VOCABULARY) == 42
    assert all(music_avqa.decide(word, word) for word in music_avqa.VOCABULARY)
    for said in ("Acoustic guitar.", "acoustic_guitar", "**ACOUSTIC  GUITAR**"):
        assert music_avqa.decide(said, "acoustic_guitar")
    assert music_avqa.decide("More than ten!", "more than ten")
    assert music_avqa.decide("one", "two") is False
    for said in ("", "A", "guitar", "2", "two or three", "it is two"):
        assert music_avqa.decide(said, "two") is None, said


def test_a_reference_may_be_spelled_as_an_answer_may():
    assert music_avqa.decide("acoustic_guitar", "acoustic guitar") and music_avqa.decide("More than ten", "More than ten.")
    assert music_avqa.decide("two", "One") is False


@pytest.mark.slow  # `evaluate` takes long to import
@pytest.mark.parametrize("name", ["mmau_official", "music_avqa", "paper_protocol"])
def test_a_metric_loads_by_its_path_and_does_what_its_page_shows(name):
    import evaluate

    metric = evaluate.load(str(METRICS / name))
    page = (METRICS / name / "README.md").read_text()
    shown = re.search(r"```python\n.*?(metric\.compute\(.*\))\n# (\{.*?\})\n```", page, re.DOTALL)
    computed = eval(shown.group(1), {"metric": metric})
    assert {key: round(value, 2) if isinstance(value, float) else value for key, value in computed.items()} == eval(
        shown.group(2)
    )
    one = {"predictions": "", "references": 0 if name == "paper_protocol" else "two", "choices": ["two", "one"]}
    assert metric.compute(**{column: [one[column]] for column in metric.features})["unanswered"] == 100.0
    for wrong in (-1, 2) if name == "paper_protocol" else ("acoustic",):
        with pytest.raises(ValueError, match=f"^reference {wrong!r} is no"):
            metric.compute(**{column: [(one | {"references": wrong})[column]] for column in metric.features})
    given = {column: [one[column]] * 2 for column in metric.features} | {"predictions": ["two", None]}
    with pytest.raises(ValueError, match=r"^prediction 1 is None; give an empty text"):
        metric.compute(**given)
    with pytest.raises(ValueError, match=r"^there are no predictions to score$"):
        metric.compute(**{column: [] for column in metric.features})

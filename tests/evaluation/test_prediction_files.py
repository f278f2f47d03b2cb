"""Files of predictions in the shapes that other people's tools write, and the decision on every row of one."""

import json
from collections.abc import Callable

import pytest

from evaluation.running.controls import shuffle_choices
from evaluation.score import main
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError
from tests.support.mmau import annotation as mmau_annotation
from tests.support.scoring import ONE, OUTPUTS, score, write


def test_rows_are_lines_or_a_list_whatever_the_name_says(mmau_annotations, tmp_path, capsys):
    rows = [{"id": f"q{i}", "model_output": output} for i, output in enumerate(OUTPUTS)]
    (tmp_path / "lines.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "list.jsonl").write_text(json.dumps(rows, indent=2))
    for name in ("lines.json", "list.jsonl"):
        message = score(tmp_path / name, mmau_annotations, capsys, "--protocol", "paper")
        assert message["protocols"]["paper"]["results"]["none"]["accuracy"] == 75.0


CHOICES = ["Man", "Woman", "Child"]
LMMS = {"choices": json.dumps(CHOICES), "answer": "Man", "task": "sound"}
# As other people's scripts write the outputs of `OUTPUTS`, row by row or whole.
SHAPES: dict[str, Callable[[str, str], dict]] = {
    "the submission of lmms-eval": lambda i, o: {"id": i, "choices": json.dumps(CHOICES), "model_prediction": o},
    "samples of lmms-eval": lambda i, o: {"doc_id": 0, "doc": {"id": i, **LMMS}, "target": "Man", "resps": [[o]]},
    "samples of lmms-eval, flat": lambda i, o: {"doc": {"id": i, **LMMS}, "resps": [o], "filtered_resps": "cut out"},
    "filtered samples": lambda i, o: {"doc": {"id": i, **LMMS, "model_prediction": "Child"}, "filtered_resps": [o]},
    "MMAR": lambda i, o: {"id": i, "thinking_prediction": "A dog? A man.", "answer_prediction": o},
    "raw outputs": lambda i, o: {"id": i, "raw_model_outputs": [o], "answer_prediction": "Child"},
    "raw outputs, as a text": lambda i, o: {"id": i, "raw_model_outputs": json.dumps([o, "Child"])},
    "several samples": lambda i, o: {"id": i, "raw_model_outputs": [o, "Child", "Child"]},
    "choices as Python writes them": lambda i, o: {"id": i, "choices": str(CHOICES), "prediction": o},
    "choices by letter": lambda i, o: {"id": i, "choices": dict(zip("ABC", CHOICES, strict=True)), "response": o},
    "choices with letters": lambda i, o: mmau_annotation(
        i, choices=["(A) Man", "(B) Woman", "(C) Child"], answer="(A) Man", model_output=o
    ),
    "choices in other spaces": lambda i, o: {"id": i, "choices": [" Man", "Woman ", "Child"], "answer": "A", "response": o},
    "a key that is never filled": lambda i, o: {"id": i, "output": None, "model_output": o},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("file", ["p.json", "p.jsonl"])
def test_files_of_others_are_read_in_their_own_shapes(mmau_annotations, tmp_path, capsys, name, file):
    rows = [SHAPES[name](f"q{i}", output) for i, output in enumerate(OUTPUTS)]
    message = score(write(tmp_path / file, rows), mmau_annotations, capsys, "--protocol", "paper")
    assert message["protocols"]["paper"]["results"]["none"]["accuracy"] == 75.0
    assert (message["missing"], message["not_text"]) == ({"none": 0}, {"none": 0})
    assert message["several"] == (4 if name in ("several samples", "raw outputs, as a text") else 0)


WHOLE: dict[str, object] = {
    "outputs by id": {f"q{i}": output for i, output in enumerate(OUTPUTS)},
    "rows by id": {f"q{i}": {"model_output": output} for i, output in enumerate(OUTPUTS)},
    "lists by id": {f"q{i}": [output] for i, output in enumerate(OUTPUTS)},
    "a list in an object": {"model": "x", "rows": [{"id": f"q{i}", "response": output} for i, output in enumerate(OUTPUTS)]},
    "lm-eval": {
        "results": {"mmau": {"acc": 0.5}},
        "samples": {"mmau": [{"doc": {"id": f"q{i}", **LMMS}, "resps": [[output]]} for i, output in enumerate(OUTPUTS)]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_json_object_is_read_by_id_or_by_its_only_list(mmau_annotations, tmp_path, capsys, name):
    message = score(write(tmp_path / "p.json", WHOLE[name]), mmau_annotations, capsys, "--protocol", "paper")
    assert message["protocols"]["paper"]["results"]["none"]["accuracy"] == 75.0


def test_choices_of_another_question_are_told_in_every_form(mmau_annotations, tmp_path, capsys):
    for choices in (json.dumps(["Man", "Dog"]), str(["Man", "Dog"]), ["(A) Woman", "(B) Man", "(C) Child"], "Man or Dog"):
        rows = [{"id": "q0", "choices": choices, "model_prediction": "Man"}]
        with pytest.raises(InputError, match="question q0 has other texts there"):
            score(write(tmp_path / "p.json", rows), mmau_annotations, capsys)


def test_the_decision_on_every_row_is_written(mmau_annotations, tmp_path, capsys):
    rows = [{"id": f"q{i}", "model_output": output} for i, output in enumerate(["Woman", "(B) Woman", "A", "?"])]
    message = score(write(tmp_path / "p.json", rows[:3]), mmau_annotations, capsys, "--rows_file", str(tmp_path / "d.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    decided = {(x["id"], x["protocol"]): (x["answer"], x["matched_by"], x["correct"]) for x in lines}
    assert decided == {
        ("q0", "official"): (1, "words", False),
        ("q0", "paper"): (1, "choice_text", False),
        ("q1", "official"): (1, "words", False),
        ("q1", "paper"): (1, "letter", False),
        ("q2", "official"): (None, "words", False),
        ("q2", "paper"): (0, "letter", True),
        ("q3", "official"): (None, "none", False),
        ("q3", "paper"): (None, "none", False),
    }
    assert all(list(line) == ["id", "protocol", "answer", "matched_by", "correct"] for line in lines)
    for protocol, part in message["protocols"].items():
        right = sum(line["correct"] for line in lines if line["protocol"] == protocol)
        assert part["results"]["none"]["accuracy"] == 25.0 * right
        assert part["results"]["none"]["over_answered"]["n"] == 3


def test_decisions_under_controls_say_which(mmau_annotations, tmp_path, capsys):
    rows = [{"id": "q0", "model_output": "Man", "control": control} for control in ("none", "shuffled")]
    where = ["--protocol", "paper", "--rows_file", str(tmp_path / "d.jsonl")]
    score(write(tmp_path / "p.json", rows), mmau_annotations, capsys, *where)
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and {line["control"] for line in lines} == {"none", "shuffled"}
    asked = shuffle_choices(get_benchmark("mmau").to_row(json.loads(mmau_annotations.read_text())[0]))
    (line,) = (x for x in lines if x["id"] == "q0" and x["control"] == "shuffled")
    assert asked["choices"][line["answer"]] == "Man" and line["answer"] != 0


def test_a_place_where_decisions_cannot_go_is_told_before_scoring(mmau_annotations, tmp_path, capsys):
    predictions = write(tmp_path / "p.json", [ONE])
    for place, message in (
        (tmp_path, "expected the path of a file in a folder that exists"),
        (tmp_path / "nowhere" / "d.jsonl", "expected the path of a file in a folder that exists"),
        (predictions, "is the file of --predictions, which it would replace"),
        (mmau_annotations, "is the file of --annotations, which it would replace"),
    ):
        with pytest.raises(InputError, match=message):
            score(predictions, mmau_annotations, capsys, "--rows_file", str(place))
    assert json.loads(predictions.read_text()) == [ONE]


def test_accuracy_over_the_answered_stands_beside_that_over_all(mmau_annotations, tmp_path, capsys):
    rows = [{"id": f"q{i}", "model_output": output} for i, output in enumerate(["Man", "Woman", "", "?"])]
    flags = ["--benchmark", "mmau", "--annotations", str(mmau_annotations), "--allow_unpinned", "--predictions"]
    main([*flags, str(write(tmp_path / "p.json", rows)), "--protocol", "paper"])
    text = capsys.readouterr().out
    assert "| average | 4 | 25.0 [4.6, 69.9] |\n| average, over the answered | – | 50.0 [9.5, 90.5] (n=2) |" in text
    assert text.startswith("mmau, mmau.json, sha256:")
    main([*flags, str(write(tmp_path / "p.json", rows[2:])), "--protocol", "paper"])
    assert "| average, over the answered | – | – |" in capsys.readouterr().out


UNKNOWN: dict[str, tuple[object, str]] = {
    "figures": (
        {"accuracy": 0.5, "n": 4},
        r"or an object of them by id; found an object with accuracy, n$",
    ),
    "a text": (
        "Man",
        "expected a list of predictions, .*; found a str",
    ),
    "an object of unknown ids": (
        {"q0": "Man", "note": "x"},
        "1 of 2 ids are no question of mmau .*first: note",
    ),
    "two lists": (
        {"a": [ONE], "b": [ONE]},
        r"holds several lists of rows \(a, b\); leave only the one",
    ),
    "an unknown shape": (
        [{"id": "q0", "said": "Man"}],
        "under one of output, .*prediction, found none, but id, said",
    ),
    "another split": (
        [ONE | {"id": "x", "split": "test"}],
        "the file names split test; .*were another benchmark, split",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_shape_is_one_line_that_names_what_was_seen_and_expected(mmau_annotations, tmp_path, capsys, name):
    content, message = UNKNOWN[name]
    with pytest.raises(InputError, match=message) as raised:
        score(write(tmp_path / "p.json", content), mmau_annotations, capsys)
    assert "\n" not in str(raised.value)

"""Files of predictions compared in pairs, as runs are."""

import json
from pathlib import Path

import pytest

from evaluation import compare
from sightsound.cli import InputError
from tests.support.questions import question
from tests.support.runs import write_predictions, write_run
from tests.support.scoring import write


def told_of(capsys, *sides: object, flags: tuple[str, ...] = ()) -> dict:
    compare.main(["--runs", *map(str, sides), *flags, "--json"])
    return json.loads(capsys.readouterr().out)


def test_files_of_runs_are_paired_as_the_runs_are(tmp_path, capsys):
    runs = [write_run(tmp_path / name, right=right) for name, right in (("first", 8), ("second", 4))]
    files = [f"{run}/data/predictions-avqa.parquet" for run in runs]
    expected = told_of(capsys, *runs)
    assert expected["avqa"]["difference"] == 50.0
    assert told_of(capsys, *files) == told_of(capsys, files[0], runs[1]) == expected


def theirs(path: Path, outputs: list[str], **more: object) -> Path:
    return write(path, [{"id": f"q{i}", "model_output": output, **more} for i, output in enumerate(outputs)])


def test_files_of_others_are_graded_on_the_questions_and_paired(mmau_annotations, tmp_path, capsys):
    flags = ("--benchmark", "mmau", "--annotations", str(mmau_annotations), "--allow_unpinned")
    first = theirs(tmp_path / "a.json", ["Man", "A", "(A) Man", "Woman"])
    second = write(tmp_path / "b.jsonl", [{"id": f"q{i}", "raw_model_outputs": [text]} for i, text in enumerate("ABBA")])
    message = told_of(capsys, first, second, flags=flags)["mmau"]
    assert (message["n"], message["only_first"], message["only_second"], message["difference"]) == (4, 2, 1, 25.0)
    ours = [question(i, 0) | {"id": f"q{i}", "choices": ["Man", "Woman", "Child"]} for i in range(4)]
    run = write_run(tmp_path / "run", "mmau", rows=ours)
    write_predictions(run, ours, [True] * 4, "mmau")
    part = write_run(tmp_path / "part", "mmau", rows=ours[:2])
    write_predictions(part, ours[:2], [True] * 2, "mmau")
    with pytest.raises(InputError, match=r"2 questions of mmau are in one run only \(first: q2\); .* have a different --limit"):
        told_of(capsys, run, part, flags=flags)
    middle = write(tmp_path / "part.json", [{"id": "q1", "model_output": "Man"}])
    for sides, counts in (((first, middle), "3 only in the first, 0 only"), ((middle, first), "0 only in the first, 3 only")):
        with pytest.raises(InputError, match=f"on mmau the files answer different questions: {counts} in the second") as raised:
            told_of(capsys, *sides, flags=flags)
        assert "--" not in str(raised.value), "files were made with no flag of ours"
    compare.main(["--runs", str(first), str(second), *flags])
    assert capsys.readouterr().out.startswith(f"mmau, 4 questions of mmau.json: {first} less {second}: +25.0 [")
    assert message["split"] is None, "a file's name is none"


def test_differing_splits_are_named(tmp_path, capsys):
    files = []
    for split in ("validation", "test"):
        run = write_run(tmp_path / split)
        results = Path(run, "results.json")
        results.write_text(json.dumps(json.loads(results.read_text()) | {"settings": {"split": split}}))
        files.append(run)
    message = "on avqa the runs are about other questions: split validation in the first, split test in the second; ask both"
    with pytest.raises(InputError, match=message):
        compare.main(["--runs", *files])
    compare.main(["--runs", files[0], files[0]])
    assert capsys.readouterr().out.startswith("avqa, 8 questions of split validation: ")


def test_what_cannot_be_paired_is_one_line(mmau_annotations, tmp_path):
    other = str(theirs(tmp_path / "a.json", ["Man"]))
    run = write_run(tmp_path / "run")
    questions = ["--annotations", str(mmau_annotations), "--allow_unpinned"]
    for flags, message in (
        (
            ["--runs", other, other],
            r"does not hold the right answers \(it lacks benchmark, .*give the questions: --benchmark, and",
        ),
        (["--runs", other, other, "--benchmark", "mmau"], "give the questions: either --annotations"),
        (["--runs", other, other, *questions], "--benchmark: which of avqa, mmar, mmau, music_avqa are these questions of"),
        (["--runs", other, run, "--benchmark", "mmau", *questions], "holds no run on mmau, but on avqa"),
        (["--runs", other, str(tmp_path / "gone.json"), "--benchmark", "mmau", *questions], r"gone\.json cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            compare.main(flags)
        assert "\n" not in str(raised.value)

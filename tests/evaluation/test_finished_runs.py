"""Which runs are in a folder, for every command that reads runs; and two of them compared."""

import json
from pathlib import Path

import pytest

from evaluation import browse as browser
from evaluation import compare, publish, report
from evaluation.reporting.finished_runs import answers_of, find_runs, run_names
from evaluation.reporting.sections import comparisons_lines
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from tests.support.questions import question
from tests.support.runs import ROWS, write_predictions, write_results, write_run


def test_a_folder_is_a_run_or_has_one_of_each_benchmark(tmp_path):
    one, several = write_run(tmp_path / "one"), tmp_path / "several"
    for name in ("music_avqa", "avqa"):
        write_run(several / name, name)
    write_run(several / "another")
    found = [
        (Path(run.folder).relative_to(tmp_path).as_posix(), run.results["benchmark"]) for run in find_runs([one, str(several)])
    ]
    assert found == [("one", "avqa"), ("several/avqa", "avqa"), ("several/music_avqa", "music_avqa")]


def unfinished(folder: Path) -> None:
    """As it is left by an interruption in the second benchmark."""
    write_run(folder / "avqa")
    (folder / "mmau").mkdir()
    (folder / "mmau" / "stage.json").write_text(json.dumps({"settings": {}, "complete": False}))


def of_another_stage(folder: Path) -> None:
    write_run(folder)
    (folder / "results.json").unlink()


def old(folder: Path) -> None:
    write_results(folder, {"benchmark": "avqa", "results": {}})


def renamed(folder: Path) -> None:
    write_run(folder / "avqa")
    write_run(folder / "mmau", "avqa")


REFUSED = {
    "nothing": (lambda folder: None, "is no folder; give the --output_dir of a finished"),
    "an empty folder": (Path.mkdir, "holds no finished run; give the --output_dir of a finished"),
    "the parent of several arms": (
        lambda folder: [write_run(folder / arm) for arm in ("base", "sft")],
        "holds no finished run itself; there are some in its sub-folders, e.g. .*given/base; give the --output_dir of",
    ),
    "the parent of an arm with several benchmarks": (
        lambda folder: write_run(folder / "sft" / "mmau", "mmau"),
        "holds no finished run itself; there are some in its sub-folders, e.g. .*given/sft/mmau; give",
    ),
    "half of a benchmark": (
        lambda folder: write_run(folder, complete=False),
        "given is not complete; rerun its evaluation first",
    ),
    "one benchmark of two": (unfinished, "given/mmau is not complete; rerun its evaluation first"),
    "another stage": (of_another_stage, r"holds no results\.json; give the --output_dir of a finished"),
    "an older version": (old, r"given/results\.json lacks gains: not by this version; evaluate again"),
    "one benchmark twice": (renamed, "given/avqa and .*given/mmau are both on avqa; give one of them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_finished_run_is_refused_by_every_command(name, tmp_path):
    make, message = REFUSED[name]
    folder, good = tmp_path / "given", write_run(tmp_path / "good")
    make(folder)
    for command in (
        lambda: compare.main(["--runs", good, str(folder)]),
        lambda: report.main(["--runs", good, str(folder), "--output_dir", str(tmp_path / "report")]),
        lambda: publish.read_runs([str(folder)], tmp_path),
        lambda: browser.read_run(str(folder), "avqa"),
    ):
        with pytest.raises(InputError, match=message):
            command()
    assert not (tmp_path / "report").exists()


def test_an_answer_is_one_and_on_its_benchmark(tmp_path):
    run = write_run(tmp_path / "twice", rows=[*ROWS, ROWS[0]])
    with pytest.raises(
        InputError, match=r"predictions-avqa\.parquet: question 0 occurs twice; keep only the answer that counts"
    ):
        answers_of(*find_runs([run]))
    run = write_run(tmp_path / "other")
    write_predictions(run, ROWS, [True] * 8, "mmau")
    (tmp_path / "other" / "data" / "predictions-mmau.parquet").rename(tmp_path / "other" / "data" / "predictions-avqa.parquet")
    with pytest.raises(InputError, match="holds predictions on mmau, expected avqa"):
        answers_of(*find_runs([run]))


def test_runs_are_compared_over_the_questions_of_the_average(tmp_path, capsys):
    first, second = (write_run(tmp_path / name, "music_avqa", right) for name, right in (("first", 4), ("second", 0)))
    compare.main(["--runs", first, second, "--json"])
    compared = json.loads(capsys.readouterr().out)["music_avqa"]
    assert (compared["n"], compared["difference"], compared["only_first"]) == (4, 100.0, 4)
    assert "+100.0 [+100.0, +100.0] | 0 | 4 |" in comparisons_lines(find_runs([first, second]))[-1].replace("-", "+")


def test_a_benchmark_that_only_one_run_was_asked_is_told(tmp_path, capsys):
    write_run(tmp_path / "both" / "avqa")
    write_run(tmp_path / "both" / "mmau", "mmau")
    compare.main(["--runs", str(tmp_path / "both"), write_run(tmp_path / "one")])
    message = capsys.readouterr()
    assert message.out.startswith("avqa, 8 questions: ") and message.err == "not compared, in one of the runs only: mmau\n"


def test_runs_that_do_not_say_what_the_average_counts_are_not_compared(tmp_path):
    """A file of a version that did not write it."""
    run = write_run(tmp_path / "run", "music_avqa")
    features = schema.predictions_features()
    del features["in_paper"]
    rows = [{name: row[name] for name in features} for row in answers_of(*find_runs([run])).values()]
    parquet.write_parquet(rows, features, tmp_path / "run" / "data" / "predictions-music_avqa.parquet")
    with pytest.raises(InputError, match="predictions on music_avqa lack in_paper: not by this version; evaluate again"):
        compare.main(["--runs", run, run])


def test_runs_on_other_questions_are_not_compared_whatever_their_ids(tmp_path):
    """As of two splits of AVQA, whose ids repeat."""
    run = write_run(tmp_path / "run")
    alike = {"choices": ["dog", "drum"]}, {"answer": 1}, {"video_id": "another"}
    for i, differing in enumerate(alike):
        other = write_run(tmp_path / f"other-{i}", rows=[*ROWS[:4], *(row | differing for row in ROWS[4:7])])
        message = r"about other questions under the same ids \(3 of them, first: 4\); .* have a different --split"
        with pytest.raises(InputError, match=message):
            compare.main(["--runs", run, other])
    fewer = write_run(tmp_path / "fewer", rows=ROWS[:5])
    with pytest.raises(InputError, match=r"3 questions of avqa are in one run only \(first: 5\); .* have a different --limit"):
        compare.main(["--runs", run, fewer])
    later = write_run(tmp_path / "later", rows=[*ROWS[1:], question(8, 0)])
    with pytest.raises(InputError, match=r"2 questions of avqa are in one run only \(first: 0\); .* have a different --split"):
        compare.main(["--runs", run, later])


def test_runs_are_named_by_no_more_of_their_folders_than_tells_them_apart():
    assert run_names(["/home/me/runs/base", "/home/me/runs/grpo/"]) == ["base", "grpo"]
    assert run_names(["/home/me/seed-0/sft", "/home/me/seed-1/sft"]) == ["seed-0/sft", "seed-1/sft"]
    assert run_names(["/home/me/sft", "/home/me/./sft"]) == ["sft", "sft"] and run_names([]) == []
    assert run_names(["/home/me/grpo/mmau"]) == ["grpo/mmau"], "a benchmark is no name of a run"

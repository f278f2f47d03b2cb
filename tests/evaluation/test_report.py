"""A report over runs and training logs that are written here by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.report import main
from evaluation.running.controls import CONTROLS
from evaluation.scoring.accuracy import results_of
from evaluation.scoring.audio_use import gains_over
from evaluation.scoring.protocols import OFFICIAL, PAPER, Decision
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.stage import fingerprint
from tests.support.questions import CLIPS, DECISIONS, ROWS, question
from tests.support.runs import ASKED, MMAU_OUTPUTS, MMAU_ROWS, MUSIC_ROWS, is_png, results_on, write_predictions, write_results
from tests.support.tiny import REPO


KEYS = {
    "arm",
    "seed",
    "split",
    "trained_on",
    "n",
    "accuracy",
    "low",
    "high",
    "unanswered",
    "silent_accuracy",
    "swapped_accuracy",
}
NOTHING_RIGHT = [Decision(False, "letter")] * len(ROWS)


def write_run(folder, arm: str, controls=(), complete: bool = True, seed: int = 0, heard=DECISIONS, **more) -> str:
    decisions = {"none": heard, **dict.fromkeys(controls, NOTHING_RIGHT)}
    results = {
        "results": {name: results_of(part, ROWS, get_benchmark("avqa")) for name, part in decisions.items()},
        "gains": gains_over(decisions, CLIPS, dict.fromkeys(decisions, range(len(ROWS)))),
    }
    return write_results(folder, {"arm": arm, "seed": seed, **ASKED, **results, **more}, complete)


def write_training(folder, *log: dict) -> str:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(log)}))
    return str(folder)


SFT_LOG = ({"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"train_runtime": 3.0})
GRPO_LOG = ({"step": 1, "reward": 0.5, "kl": 0.0}, {"step": 2, "reward": 1.5, "kl": 0.01})


def test_the_report_holds_every_run_with_its_controls(tmp_path, capsys):
    runs = [write_run(tmp_path / "sft", "sft", ["silent", "swapped"]), write_run(tmp_path / "base", "base", seed=1)]
    main(["--runs", *runs, "--output_dir", str(tmp_path / "out" / "new")])
    out = tmp_path / "out" / "new"
    sft, base = json.loads((out / "report.json").read_text())
    assert set(sft) == KEYS == set(base)
    assert (sft["arm"], sft["n"], sft["accuracy"], sft["unanswered"]) == ("sft", 4, 50.0, 25.0)
    assert sft["silent_accuracy"] == sft["swapped_accuracy"] == 0.0
    assert (base["seed"], base["silent_accuracy"], base["swapped_accuracy"]) == (1, None, None)
    row = "| sft | 0 | 4 | 50.0 [15.0, 85.0] | 25.0 | 0.0 | 0.0 |"
    text = (out / "report.md").read_text()
    assert row in text.splitlines()
    assert "| base | 1 | 4 | 50.0 [15.0, 85.0] | 25.0 | – | – |" in text.splitlines()
    assert row in capsys.readouterr().out
    assert "| arm | seed | Where | Which |" in text
    half = "50.0 [9.5, 90.5] (n=2)"
    assert 'In the miniature "Both" are clean clips' in text
    assert f"| sft | 0 | {half} | {half} |" in text, "by relation"
    assert "| sft | 0 | average, 4 | paper | 50.0 [15.0, 85.0] | 28.9 | 25.0 |" in text, "protocols and errors"
    assert "| sft | 0 | +50.0 [+0.0, +100.0] | +50.0 [+0.0, +100.0] | – | – | – |" in text, "gains over controls"
    assert "| base | 1 | 33.3 [6.1, 79.2] (n=3) | 100.0 [20.7, 100.0] (n=1) |" in text, "by position"
    assert "compared" not in text, "they are of two seeds"
    assert is_png(out / "accuracy.png")
    assert not (out / "sft_loss.png").exists()


ALL_RIGHT = [Decision(True, "letter")] * len(ROWS)


def first_line(tmp_path, *runs: str) -> str:
    main(["--runs", *runs, "--output_dir", str(tmp_path / "out")])
    return (tmp_path / "out" / "report.md").read_text().splitlines()[0]


def test_the_first_line_says_who_is_deaf(tmp_path):
    hears = write_run(tmp_path / "hears", "hears", ["silent", "swapped"], heard=ALL_RIGHT)
    deaf = write_run(tmp_path / "deaf", "deaf", ["silent"], heard=NOTHING_RIGHT)
    untold = write_run(tmp_path / "untold", "untold", ["text_only"])
    assert first_line(tmp_path, hears).startswith("Not deaf: every run does better")
    line = first_line(tmp_path, hears, deaf, untold)
    assert line.startswith("DEAF: deaf (seed 0) does no better with the clip than with silent audio (+0.0 points")
    assert "hears" not in line and "Audio use not tested: untold (seed 0). Run with" in line
    assert first_line(tmp_path, hears, untold).startswith("Audio use not tested: untold (seed 0). Run with --controls silent")


def test_controls_and_the_official_protocol_stand_beside_the_figures(tmp_path):
    official = results_of(NOTHING_RIGHT, ROWS, get_benchmark("mmau"))
    kept = {"n": 4, "same_choice": 75.0, "low": 30.1, "high": 95.4}
    more = {"official": {"none": official}, "benchmark": "mmau", "consistency": kept}
    run = write_run(tmp_path / "run", "sft", list(CONTROLS), heard=ALL_RIGHT, **more)
    assert first_line(tmp_path, run).startswith("Not deaf")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| sft | 0 | average, 4 | paper | 100.0 [51.0, 100.0] | 0.0 | 0.0 |" in text
    assert "| sft | 0 | average, 4 | official | 0.0 [0.0, 49.0] | 0.0 | 0.0 |" in text
    gain = "+100.0 [+100.0, +100.0]"
    assert f"| sft | 0 | {gain} | {gain} | {gain} | {gain} | 75.0 [30.1, 95.4] |" in text


def test_what_was_not_answered_and_what_was_cut_is_said(tmp_path):
    lost = {"none": {"answered": 3, "missing_media": 1}, "silent": {"answered": 4}}
    first_line(tmp_path, write_run(tmp_path / "run", "sft", ["silent"], outcomes=lost, clips_cut=2))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| arm | seed | condition | outputs | no output, and why | clips cut to the model's window |" in text
    assert "| sft | 0 | the clip | 3 | 1 missing_media | 2 |\n\n" in text
    first_line(tmp_path, write_run(tmp_path / "well", "sft", outcomes={"none": {"answered": 4}}, clips_cut=0))
    assert "Missing outputs" not in (tmp_path / "out" / "report.md").read_text()


def test_every_figure_names_its_split(tmp_path, capsys):
    run = write_run(tmp_path / "run", "sft", settings=ASKED["settings"] | {"split": "train"})
    other = write_run(tmp_path / "other", "base")
    main(["--runs", run, "--output_dir", str(tmp_path / "out")])
    assert "\n## avqa, split train\n" in (tmp_path / "out" / "report.md").read_text()
    assert "\navqa, split train\n\n| arm |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())[0]["split"] == "train"
    main(["--runs", run, other, "--output_dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "\n## avqa, splits train, validation\n" in text
    assert "| sft on train | 0 | 4 |" in text and "| base on validation | 0 | 4 |" in text


def test_a_run_on_questions_that_the_model_was_trained_on_is_marked(tmp_path, capsys):
    runs = [write_run(tmp_path / "sft", "sft", trained_on=3), write_run(tmp_path / "base", "base", trained_on=0)]
    main(["--runs", *runs, "--output_dir", str(tmp_path / "out")])
    message = "TRAINED ON the questions of this test: sft (seed 0), 3 of these 4 questions. "
    message += "These figures do not show how accurate it is on other questions."
    assert message in (tmp_path / "out" / "report.md").read_text().splitlines() and message in capsys.readouterr().out
    assert [run["trained_on"] for run in json.loads((tmp_path / "out" / "report.json").read_text())] == [3, 0]


def test_a_control_that_was_refused_has_no_accuracy(tmp_path):
    outcomes = {"none": {"answered": 4}, "silent": {"refused": 4}}
    main(["--runs", write_run(tmp_path / "run", "sft", ["silent"], outcomes=outcomes), "--output_dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "report.json").read_text())[0]["silent_accuracy"] is None


def test_silent_video_cannot_be_heard(tmp_path):
    sees = write_run(tmp_path / "sees", "sees", method="video/direct")
    assert first_line(tmp_path, sees) == "Audio use not tested: no run received audio."
    hears = write_run(tmp_path / "hears", "hears", ["silent", "swapped"], heard=ALL_RIGHT)
    assert first_line(tmp_path, sees, hears).startswith("Not deaf")


def test_mmau_is_told_as_the_paper_tells_it(tmp_path):
    run = write_results(tmp_path / "mmau", results_on("mmau", MMAU_ROWS, MMAU_OUTPUTS, arm="sft"))
    main(["--runs", run, "--output_dir", str(tmp_path)])
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| arm | seed | protocol | music | sound | speech | average |" in lines
    paper, official = (next(x for x in lines if x.startswith(f"| sft | 0 | {name} | 100.0")) for name in (PAPER, OFFICIAL))
    assert "| 100.0 [61.0, 100.0] (n=6) |" in paper and paper.endswith("| 75.0 [46.8, 91.1] (n=12) |")
    assert "| 50.0 [18.8, 81.2] (n=6) |" in official and official.endswith("| 50.0 [25.4, 74.6] (n=12) |")
    assert "| sft | 0 | average, 12 | paper | 75.0 [46.8, 91.1] | 13.1 | 25.0 |" in lines
    assert "| arm | seed | protocol | easy | hard |" in lines
    assert "### By relation" in lines and "In the miniature" not in "".join(lines)
    assert "| questions | sft, 0, paper | sft, 0, official |" in lines, "12 sub-categories go down the page"
    assert "| kind 9 | 100.0 [20.7, 100.0] (n=1) | 0.0 [0.0, 79.3] (n=1) |" in lines


def test_music_avqa_has_the_papers_average_and_that_of_all_questions(tmp_path):
    run = write_results(tmp_path / "music", results_on("music_avqa", MUSIC_ROWS, ["yes"] * 4 + ["no"], arm="sft"))
    main(["--runs", run, "--output_dir", str(tmp_path)])
    lines = (tmp_path / "report.md").read_text().splitlines()
    head = "| arm | seed | protocol | Comparative | Counting | Existential | Location | Temporal | average | all |"
    assert head in lines
    for protocol in (PAPER, OFFICIAL):
        row = next(line for line in lines if line.startswith(f"| sft | 0 | {protocol} |"))
        assert row.endswith("| 100.0 [51.0, 100.0] (n=4) | 80.0 [37.6, 96.4] (n=5) |")
        assert f"| sft | 0 | all, 5 | {protocol} | 80.0 [37.6, 96.4] | 20.0 | 0.0 |" in lines


def test_a_run_of_several_benchmarks_is_told_benchmark_by_benchmark(tmp_path):
    for name, rows, outputs in (("mmau", MMAU_ROWS, MMAU_OUTPUTS), ("music_avqa", MUSIC_ROWS, ["no"] * 5)):
        write_results(tmp_path / "run" / name, results_on(name, rows, outputs))
    main(["--runs", str(tmp_path / "run"), "--output_dir", str(tmp_path)])
    entries = json.loads((tmp_path / "report.json").read_text())
    assert [(e["benchmark"], e["n"], e["accuracy"]) for e in entries] == [("mmau", 12, 75.0), ("music_avqa", 4, 0.0)]
    text = (tmp_path / "report.md").read_text()
    assert "run (seed 0) on mmau, run (seed 0) on music_avqa" in text.splitlines()[0]
    assert text.index("## mmau") < text.index("## music_avqa")
    assert is_png(tmp_path / "accuracy.png")


def test_runs_are_compared_with_the_one_before_and_with_the_first(tmp_path):
    rows = [question(i, 0) for i in range(8)]
    runs = []
    for arm, num_right in (("base", 0), ("sft", 6), ("grpo", 8)):
        runs.append(write_run(tmp_path / arm, arm))
        write_predictions(runs[-1], rows, [i < num_right for i in range(8)])
    other = write_run(tmp_path / "other", "other")
    write_predictions(other, rows[:4], [True] * 4)
    main(["--runs", *runs, other, "--output_dir", str(tmp_path)])
    lines = (tmp_path / "report.md").read_text().splitlines()
    at = lines.index("### Runs compared in pairs")
    assert lines[at + 6].startswith("| sft | base | 0 | +75.0 [") and lines[at + 6].endswith("| 6 | 0 | 0.031 |")
    assert lines[at + 7].startswith("| grpo | sft | 0 | +25.0 [") and lines[at + 7].endswith("| 2 | 0 | 0.5 |")
    assert lines[at + 8] == "| grpo | base | 0 | +100.0 [+100.0, +100.0] | 8 | 0 | 0.0078 |"
    assert lines[at + 10].startswith("Not compared: other (seed 0) with grpo (seed 0): 4 questions of avqa are in one run only")


def test_the_page_is_of_the_runs_that_were_asked_its_dataset(tmp_path):
    run = write_run(tmp_path / "run", "sft")
    with pytest.raises(InputError, match=r"none of the runs was asked the questions of elsewhere; give the dataset that"):
        main(["--runs", run, "--dataset", "elsewhere", "--output_dir", str(tmp_path / "out")])
    (tmp_path / "out" / "browser").mkdir()
    (tmp_path / "out" / "browser" / "index.html").write_text("of an earlier report")
    main(["--runs", run, "--output_dir", str(tmp_path / "out")])
    assert "browser" not in (tmp_path / "out" / "report.md").read_text()


def test_runs_on_several_splits_are_named_by_them_and_not_compared(tmp_path):
    """Ids repeat across splits."""
    runs = []
    for arm, split, gold in (("base", None, 0), ("sft", "test", 1)):
        runs.append(write_run(tmp_path / arm, arm, settings=ASKED["settings"] | {"split": split}))
        write_predictions(runs[-1], [question(i, gold) for i in range(4)], [True] * 4)
    main(["--runs", *runs, "--output_dir", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "| base on validation | 0 | 4 |" in text and "| sft on test | 0 | 4 |" in text
    message = "Not compared: sft on test (seed 0) with base on validation (seed 0): on avqa the runs are about other questions"
    assert message in text


def test_runs_of_one_name_are_told_apart_wherever_they_are_named(tmp_path, capsys):
    """As of one served model, asked in several ways on one split."""
    asked = ASKED["settings"]
    runs = [write_run(tmp_path / name, "m", trained_on=2) for name in ("plain", "untested")]
    runs.append(write_run(tmp_path / "deaf", "m", ["silent"], heard=NOTHING_RIGHT))
    runs.append(write_run(tmp_path / "first", "m", settings=asked | {"limit": len(ROWS)}))
    runs.append(write_run(tmp_path / "whole", "n", settings=asked | {"limit": len(ROWS) + 1}))  # no question was left out
    for run in runs:
        write_predictions(run, ROWS, [True] * len(ROWS))
    main(["--runs", *runs, "--output_dir", str(tmp_path / "out")])
    names = ["m in plain", "m in untested", "m in deaf", "m with --limit 4", "n"]
    text, seen = (tmp_path / "out" / "report.md").read_text(), capsys.readouterr().out
    assert [entry["arm"] for entry in json.loads((tmp_path / "out" / "report.json").read_text())] == names
    assert text.startswith("DEAF: m in deaf (seed 0) does no better")
    untested = "m in plain (seed 0), m in untested (seed 0), m with --limit 4 (seed 0), n (seed 0)"
    assert f"Audio use not tested: {untested}." in text
    assert (
        "TRAINED ON the questions of this test: m in plain (seed 0), 2 of these 4 questions; m in untested (seed 0), 2" in seen
    )
    assert "| m in untested | m in plain | 0 |" in text and "| m with --limit 4 | m in plain | 0 |" in text
    assert all(f"| {name} | 0 | 4 |" in seen for name in names) and "| m | 0 |" not in text + seen


def write_asked(folder, dataset: Path, arm: str, rows: list[dict]) -> str:
    """A run on some rows of a dataset's validation split."""
    run = write_run(folder, arm, settings={"split": None, "dataset": fingerprint(str(dataset))})
    write_predictions(run, rows, [True] * len(rows))
    return run


def test_the_page_is_of_the_last_run_where_the_first_was_asked_other_questions(questions, tmp_path):
    dataset = tmp_path / "avqa-audio"
    parquet.write_parquet(questions, schema.avqa_audio_features(), dataset / "data" / "validation.parquet")
    write_dataset_card(dataset, "# Sounds\n", {"default": {"validation": "data/validation.parquet"}})
    runs = [write_asked(tmp_path / arm, dataset, arm, questions[:n]) for arm, n in (("base", 1), ("sft", 2), ("grpo", 2))]
    for given, note in ((runs, " of grpo (seed 0) alone: base (seed 0) was asked other questions"), (runs[1:], "")):
        main(["--runs", *given, "--dataset", str(dataset), "--output_dir", str(tmp_path / "out")])
        text = (tmp_path / "out" / "report.md").read_text()
        assert f"(browser/index.html){note}\n" in text
    with pytest.raises(InputError, match="is not a folder"):
        wrong = ["--media_dir", str(tmp_path / "nowhere")]
        main(["--runs", *runs, "--dataset", str(dataset), *wrong, "--output_dir", str(tmp_path / "not")])
    assert list((tmp_path / "not").iterdir()) == []


def test_training_curves_are_plotted_by_kind(tmp_path):
    run = write_run(tmp_path / "run", "sft")
    training = [write_training(tmp_path / f"seed-{i}" / "sft", *SFT_LOG) for i in (0, 1)]
    training.append(write_training(tmp_path / "seed-0" / "grpo", *GRPO_LOG))
    main(["--runs", run, "--training", *training, "--output_dir", str(tmp_path)])
    assert is_png(tmp_path / "sft_loss.png")
    assert is_png(tmp_path / "grpo.png")
    text = (tmp_path / "report.md").read_text()
    assert "![SFT loss](sft_loss.png)" in text
    assert "![GRPO reward and KL](grpo.png)" in text


def test_a_grpo_run_without_kl_is_plotted_without_a_warning(tmp_path):
    run = write_run(tmp_path / "run", "grpo")
    training = write_training(tmp_path / "grpo", {"step": 1, "reward": 0.5}, {"step": 2, "reward": 1.0})
    main(["--runs", run, "--training", training, "--output_dir", str(tmp_path)])
    assert is_png(tmp_path / "grpo.png")


def test_the_report_is_the_same_when_made_again(tmp_path):
    run = write_run(tmp_path / "run", "sft")
    texts = []
    for _ in range(2):
        main(["--runs", run, "--output_dir", str(tmp_path)])
        texts.append([(tmp_path / name).read_bytes() for name in ("report.json", "report.md", "accuracy.png")])
    assert texts[0] == texts[1]


def test_an_incomplete_run_is_refused(tmp_path):
    runs = [write_run(tmp_path / "done", "sft"), write_run(tmp_path / "half", "sft", complete=False)]
    with pytest.raises(InputError, match="half is not complete; rerun its evaluation first"):
        main(["--runs", *runs, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_version_is_refused(tmp_path):
    run = write_results(tmp_path / "old", {"arm": "base", "seed": 0, "benchmark": "avqa", "results": {}})
    with pytest.raises(InputError, match=r"old/results\.json lacks gains: not by this version; evaluate again"):
        main(["--runs", run, "--output_dir", str(tmp_path / "out")])


def test_a_report_needs_runs_and_a_folder(tmp_path):
    for flags in ([], ["--runs", write_run(tmp_path / "run", "sft")], ["--output_dir", str(tmp_path / "out")]):
        with pytest.raises(InputError, match="a report needs --runs and --output_dir; or give --table"):
            main(flags)


def test_the_module_is_a_command_too():
    command = [sys.executable, "-m", "evaluation.report", "--table", "table1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "| Qwen2.5-Omni-7B | Direct Inference | paper | 89.5 |" in done.stdout
    assert subprocess.run([*command[:-1], "table3"], cwd=REPO, capture_output=True, check=False).returncode == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder, seen in ((tmp_path, "holds no finished run"), (tmp_path / "nope", "is no folder")):
        message = f"--runs: {folder} {seen}; give the --output_dir of a finished `python -m evaluation run`"
        for flags in ([], ["--output_dir", str(tmp_path / "out")]):
            with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
                main(["--runs", str(folder), *flags])
    run = write_run(tmp_path / "run", "sft")
    with pytest.raises(InputError, match=r"trainer_state\.json does not exist"):
        main(["--runs", run, "--training", str(tmp_path), "--output_dir", str(tmp_path / "out")])

"""A report over runs and training logs that are written here by hand."""

import json

import pytest
from test_scoring import DECISIONS, ROWS

from evaluation.benchmarks import BENCHMARKS
from evaluation.controls import CONTROLS, gains_over
from evaluation.protocols import Decision
from evaluation.report import main
from evaluation.scoring import results_of
from sightsound.cli import InputError


KEYS = {"arm", "seed", "n", "accuracy", "low", "high", "unanswered", "silent_accuracy", "swapped_accuracy"}
NOTHING_RIGHT = [Decision(False, "letter")] * len(ROWS)


def write_run(folder, arm: str, controls=(), complete: bool = True, seed: int = 0, heard=DECISIONS, **more) -> str:
    folder.mkdir(parents=True)
    decisions = {"none": heard, **dict.fromkeys(controls, NOTHING_RIGHT)}
    results = {
        "results": {name: results_of(part, ROWS, BENCHMARKS["avqa"]) for name, part in decisions.items()},
        "gains": gains_over(decisions, [row["video_id"] for row in ROWS]),
    }
    (folder / "results.json").write_text(json.dumps({"arm": arm, "seed": seed, **results, **more}))
    (folder / "stage.json").write_text(json.dumps({"settings": {}, "complete": complete}))
    return str(folder)


def write_training(folder, *log: dict) -> str:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(log)}))
    return str(folder)


SFT_LOG = ({"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"train_runtime": 3.0})
GRPO_LOG = ({"step": 1, "reward": 0.5, "kl": 0.0}, {"step": 2, "reward": 1.5, "kl": 0.01})


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


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
    assert "| sft | 0 | 50.0 (n=2) | 50.0 (n=2) |" in text, "by relation"
    assert "| sft | 0 | +50.0 [+0.0, +100.0] | +50.0 [+0.0, +100.0] | – | – | – |" in text, "gains over controls"
    assert "| base | 1 | 33.3 (n=3) | 100.0 (n=1) |" in text, "by position"
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
    assert "hears" not in line
    assert first_line(tmp_path, hears, untold).startswith(
        "Not tested for deafness: untold (seed 0). Run with --controls silent"
    )


def test_controls_and_the_official_protocol_stand_beside_the_figures(tmp_path):
    official = results_of(NOTHING_RIGHT, ROWS, BENCHMARKS["mmau"])
    kept = {"n": 4, "same_choice": 75.0, "low": 30.1, "high": 95.4}
    more = {"official": {"none": official}, "benchmark": "mmau", "consistency": kept}
    run = write_run(tmp_path / "run", "sft", list(CONTROLS), heard=ALL_RIGHT, **more)
    assert first_line(tmp_path, run).startswith("Not deaf")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| sft | 0 | mmau | 100.0 [51.0, 100.0] | 0.0 [0.0, 49.0] | 0.0 |" in text
    gain = "+100.0 [+100.0, +100.0]"
    assert f"| sft | 0 | {gain} | {gain} | {gain} | {gain} | 75.0 [30.1, 95.4] |" in text


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


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"results\.json does not exist"):
        main(["--runs", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    run = write_run(tmp_path / "run", "sft")
    with pytest.raises(InputError, match=r"trainer_state\.json does not exist"):
        main(["--runs", run, "--training", str(tmp_path), "--output_dir", str(tmp_path / "out")])

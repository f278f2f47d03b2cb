"""The whole line: the smoke demo, the demo with its learning assertions, kills at random moments, and real videos."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny


SMOKE_ARMS = ["base", "sft-label", "sft-tts_agfv", "grpo-tts_agfv"]
CHANCE = 25.0  # percent, four choices


def demo(output: Path, **environment: str) -> subprocess.Popen[str]:
    """`make demo` without the set-up, in a process group of its own."""
    paths = {"PATH": f"{tiny.REPO / '.venv' / 'bin'}:{os.environ['PATH']}", "OUTPUT": str(output)}
    env = {**tiny._environment(), **paths, **environment}
    command = ["bash", "recipes/miniature/run.sh"]
    return subprocess.Popen(
        command, cwd=tiny.REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_session(process: subprocess.Popen[str]) -> None:
    """SIGKILL to all that the demo started: its lanes have process groups of their own, but one session."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output[-4000:]
    return output


def read_report(output: Path) -> dict[str, dict[str, Any]]:
    return {entry["arm"]: entry for entry in json.loads((output / "report.json").read_text())}


def read_predictions(output: Path) -> dict[str, list[tuple[str, str, str]]]:
    import pyarrow.parquet as pq

    files = {arm: output / "seed-0" / "evaluation" / arm / "data" / "predictions-avqa.parquet" for arm in SMOKE_ARMS}
    return {arm: [(r["id"], r["control"], r["output"]) for r in pq.read_table(f).to_pylist()] for arm, f in files.items()}


@pytest.fixture(scope="module")
def smoke_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("smoke") / "out"
    finish(demo(output, SMOKE="1"))
    return output


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("miniature") / "out"
    print(finish(demo(output)))
    return output


def test_smoke_demo_runs_every_stage_and_reports_every_arm(smoke_demo: Path) -> None:
    report = json.loads((smoke_demo / "report.json").read_text())
    assert [entry["arm"] for entry in report] == SMOKE_ARMS
    keys = ["arm", "seed", "n", "accuracy", "low", "high", "unanswered", "silent_accuracy", "swapped_accuracy"]
    assert all(list(entry) == [*keys, "split", "trained_on"] and entry["n"] == 8 for entry in report)
    assert [(entry["split"], entry["trained_on"]) for entry in report] == [("test", None), *[("test", 0)] * (len(report) - 1)]
    for figure in ("accuracy.png", "sft_loss.png", "grpo.png"):
        assert (smoke_demo / figure).read_bytes().startswith(b"\x89PNG")
    text = (smoke_demo / "report.md").read_text()
    assert all(f"| {arm} |" in text for arm in SMOKE_ARMS)
    assert text.startswith(("DEAF: ", "Not deaf: ", "ANSWERS NOTHING: ")), "the verdict is the first line"
    assert "gain over text only" in text and "(browser/index.html)" in text
    # The page has the questions of the corpus and those that the first and the last arm were asked.
    assert '"runs": ["base", "grpo-tts_agfv"]' in (smoke_demo / "browser" / "index.html").read_text()


def test_everything_the_demo_writes_opens_with_the_usual_calls(smoke_demo: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2AudioForConditionalGeneration

    seed = smoke_demo / "seed-0"
    assert load_dataset(str(seed / "avqa-audio"))["train"].num_rows == 200
    assert load_dataset(str(seed / "corpus"), "traces", split="train").num_rows == 200
    assert load_dataset(str(seed / "corpus"), split="train").num_rows >= 1
    for folder, count in (
        ("traces", 200),
        ("verdicts", 200),
        ("evaluation/base", 3 * 8),
        ("evaluation/grpo-tts_agfv", 5 * 8),  # it alone is also given the text only, and shuffled choices
    ):
        assert load_dataset(str(seed / folder), split="train").num_rows == count
    for folder in ("models/student", "models/checker", "sft-label", "grpo-tts_agfv"):
        Qwen2AudioForConditionalGeneration.from_pretrained(seed / folder / "model")
        AutoProcessor.from_pretrained(seed / folder / "model")
    Qwen2_5_VLForConditionalGeneration.from_pretrained(seed / "models/teacher/model")


@pytest.mark.parametrize("smoke", ["", "1"])
def test_the_demo_ends_with_the_whole_report_command_and_says_what_smoke_figures_mean(tmp_path: Path, smoke: str) -> None:
    """The script itself; programs in place of the real ones write down what they are given."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "accelerate"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/{name}-calls\n')
        (tmp_path / "bin" / name).chmod(0o755)
    out = tmp_path / "out"
    for file in ("evaluation/base/results.json", "sft-label/trainer_state.json"):
        (out / "seed-0" / file).parent.mkdir(parents=True)
        (out / "seed-0" / file).touch()
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    lines = finish(demo(out, SMOKE=smoke, PATH=path)).splitlines()
    last = (tmp_path / "python-calls").read_text().splitlines()[-1]
    assert last.startswith("python -m evaluation report --runs ") and last.count("--") == 6
    note = ["SMOKE: toy sizes: the figures mean nothing"] if smoke else []
    assert lines[-1 - len(note) :] == [f"> {last}", *note]


@pytest.mark.slow
def test_a_complete_demo_is_skipped(smoke_demo: Path) -> None:
    before = read_predictions(smoke_demo)
    log = finish(demo(smoke_demo, SMOKE="1"))
    assert log.count("  done: ") >= 10
    assert "is complete" in (smoke_demo / "seed-0" / "logs" / "grpo-tts_agfv.log").read_text()
    assert read_predictions(smoke_demo) == before


@pytest.mark.slow
def test_the_miniature_learns_what_the_method_promises(miniature: Path) -> None:
    """design.md section 6: only what is robust is asserted, the rest is reported."""
    report = read_report(miniature)
    assert report["base"]["accuracy"] < 50
    assert report["sft-tts_agfv"]["accuracy"] >= 80
    assert report["sft-tts_agfv"]["accuracy"] - report["sft-cot"]["accuracy"] >= 8
    assert report["grpo-tts_agfv"]["accuracy"] >= report["sft-tts_agfv"]["accuracy"] - 3
    log = json.loads((miniature / "seed-0" / "grpo-tts_agfv" / "trainer_state.json").read_text())["log_history"]
    rewards = [entry["reward"] for entry in log if "reward" in entry]
    first, second = rewards[: len(rewards) // 2], rewards[-(len(rewards) // 2) :]  # two epochs: the same questions in both
    assert sum(second) > sum(first)
    heard = max(report.values(), key=lambda entry: entry["accuracy"])
    assert heard["silent_accuracy"] <= CHANCE + 12 and heard["swapped_accuracy"] <= CHANCE + 12


def run_stage(*command: Any, **flags: Any) -> None:
    arguments = [str(part) for part in (*command, *(each for name, value in flags.items() for each in (f"--{name}", value)))]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tiny.REPO, env=tiny._environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_blocks_of_the_readme_run_as_they_are_written(miniature: Path, tmp_path: Path) -> None:
    """In a folder that looks like a checkout after `make demo`; what they write stays there."""
    for name in ("accelerate_configs", "dataset_builders", "evaluation", "recipes", "sightsound"):
        (tmp_path / name).symlink_to(tiny.REPO / name)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "miniature").symlink_to(miniature)
    text = (tiny.REPO / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ran = [block for block in blocks if not block[1].startswith("make ")]
    assert [language for language, _ in ran] == ["python", "sh", "python"]
    environment = {**tiny._environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, block in ran:
        command = [sys.executable, "-c", block] if language == "python" else ["bash", "-e", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
    assert (tmp_path / "outputs" / "readme-evaluation" / "results.json").is_file()


@pytest.mark.slow
def test_a_verifier_takes_the_checkers_place(miniature: Path, tmp_path: Path) -> None:
    """Its precision on clips it has not seen, and a student of its corpus within 3 points of the checker's student."""
    seed = miniature / "seed-0"
    data = {"dataset": seed / "avqa-audio", "traces": seed / "traces"}
    base = {"audio": seed / "avqa-audio", "model_name_or_path": seed / "models" / "student" / "model", "seed": 0}
    config = {"config": tiny.REPO / "recipes" / "miniature" / "verifier.yaml", "verdicts": seed / "verdicts"}
    run_stage("recipes/verifier.py", **config, **base, output_dir=tmp_path / "verifier")
    verifier = tmp_path / "verifier" / "model"
    held_out = json.loads((verifier / "config.json").read_text())["verifier"]["held_out"]
    print(held_out)
    assert held_out["precision"] >= 0.9 and held_out["recall"] >= 0.6

    run_stage("dataset_builders/verdicts.py", **data, checker=verifier, batch_size=128, output_dir=tmp_path / "verdicts")
    corpus = {"verdicts": tmp_path / "verdicts", "license": "apache-2.0", "output_dir": tmp_path / "corpus"}
    run_stage("dataset_builders/cot_corpus.py", **data, **corpus)
    config = {"config": tiny.REPO / "recipes" / "miniature" / "sft_tts_agfv.yaml", "traces": tmp_path / "corpus"}
    run_stage("recipes/sft.py", **config, **base, output_dir=tmp_path / "sft")
    asked = {"benchmark": "avqa", "dataset": seed / "avqa-audio", "split": "test", "modality": "audio", "method": "cot"}
    sizes = {"max_tokens": 64, "batch_size": 256, "seed": 0}
    run_stage(
        *("-m", "evaluation", "run"), **asked, **sizes, model=tmp_path / "sft" / "model", output_dir=tmp_path / "evaluation"
    )
    checkers = read_report(miniature)["sft-tts_agfv"]["accuracy"]
    verifiers = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]["none"]["accuracy"]
    print(f"student of the checker's corpus {checkers:.1f} %, of the verifier's {verifiers:.1f} %")
    assert verifiers >= checkers - 3


@pytest.mark.slow
def test_a_demo_killed_in_three_stages_ends_with_the_same_predictions(smoke_demo: Path, tmp_path: Path) -> None:
    """SIGKILL to everything while the teacher writes, while a student trains, and while one is evaluated."""
    for moment in ("traces/journal.jsonl", "sft-*/checkpoint-*", "evaluation/*/journal.jsonl"):
        process = demo(tmp_path / "out", SMOKE="1")
        while process.poll() is None and not any((tmp_path / "out" / "seed-0").glob(moment)):
            time.sleep(0.02)
        assert process.poll() is None, f"no {moment} was seen before the demo had ended"
        kill_session(process)
        process.communicate()
    finish(demo(tmp_path / "out", SMOKE="1"))
    assert read_predictions(tmp_path / "out") == read_predictions(smoke_demo)


@pytest.mark.storm
def test_ten_kills_change_nothing(smoke_demo: Path, tmp_path: Path, storm_seed: int) -> None:
    """SIGKILL to everything at random moments; every rerun continues where the last one was."""
    generator = random.Random(storm_seed)
    for _ in range(10):
        process = demo(tmp_path / "out", SMOKE="1")
        try:
            process.communicate(timeout=generator.uniform(5, 75))
        except subprocess.TimeoutExpired:
            kill_session(process)
            process.communicate()
    finish(demo(tmp_path / "out", SMOKE="1"))
    assert read_predictions(tmp_path / "out") == read_predictions(smoke_demo)

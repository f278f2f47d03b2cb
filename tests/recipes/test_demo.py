"""The demo with its learning assertions, the README on what it made, and the verifier in the checker's place."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sightsound.data.statistics import wilson_interval
from sightsound.method.question_filters import ANSWERABLE
from tests.support import tiny
from tests.support.demo import demo, finish, read_report
from tests.support.guessable import annotated_questions, dropped_as_guessable


CHANCE = 25.0  # percent, four choices


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("miniature") / "out"
    print(finish(demo(output)))
    return output


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


@pytest.mark.slow
def test_questions_that_give_their_answer_away_are_dropped_and_few_others(miniature: Path, tmp_path: Path) -> None:
    """The base student without the clip, on questions with the answer as notes in their text, among the annotated ones."""
    seed = miniature / "seed-0"
    ordinary = annotated_questions(seed / "world", 0, 0, 400, with_notes=False)
    planted = annotated_questions(seed / "world", 0, 400, 200, with_notes=True)
    results = dropped_as_guessable(seed / "models" / "student" / "model", [*ordinary, *planted], tmp_path)
    dropped = [outcome == ANSWERABLE for _, _, outcome in results]
    for name, part in (("ordinary", dropped[:400]), ("planted", dropped[400:])):
        low, high = wilson_interval(sum(part), len(part))
        print(f"{name}: {sum(part)} of {len(part)} dropped, {sum(part) / len(part):.1%} [{low:.1%}, {high:.1%}]")
    assert sum(dropped[400:]) >= 0.9 * 200 and sum(dropped[:400]) <= 0.1 * 400


def run_stage(*command: Any, **flags: Any) -> None:
    arguments = [str(part) for part in (*command, *(each for name, value in flags.items() for each in (f"--{name}", value)))]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tiny.REPO, env=tiny._environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_student_learns_from_clips_and_what_a_teacher_writes_about_them(miniature: Path, tmp_path: Path) -> None:
    """Half of the clips of `make demo QUESTIONS=teacher`; world, base student, checker and test questions are the fixture's."""
    seed, types = miniature / "seed-0", ("which=0.25", "first=0.2", "last=0.2", "how_many=0.25", "compare=0.1")
    teacher, segments, questions = tmp_path / "teacher", tmp_path / "segments", tmp_path / "questions"
    config = tiny.REPO / "recipes" / "miniature" / "writing_teacher.yaml"
    run_stage("recipes/miniature/pretrain.py", config=config, world=seed / "world", output_dir=teacher, max_steps=300, seed=0)
    clips = {"source": seed / "world" / "clips", "files": "tr*", "limit": 1200, "license": "apache-2.0"}
    run_stage("dataset_builders/videos.py", **clips, segment_s=2, output_dir=segments)
    prompt = tiny.REPO / "recipes" / "miniature" / "write_questions.txt"
    asked = {"dataset": segments, "media_dir": segments / "segments", "model": teacher / "model", "num_frames": 6}
    answers = {"answerer": seed / "models" / "student" / "model", "answer_prompt": "cot", "answer_max_tokens": 64}
    sizes = {"questions_per_segment": 1, "max_tokens": 120, "batch_size": 256, "blind_tries": 3, "max_guessed": 0.7}
    run_stage(
        *("dataset_builders/questions.py", "--types", *types),
        **asked,
        **answers,
        **sizes,
        prompt_file=prompt,
        output_dir=questions,
    )
    ledger = [row for row in pq.read_table(questions / "ledger.parquet").to_pylist() if row["kind"] == "question"]
    kept = sum(row["outcome"] == "built" for row in ledger)
    print(f"{kept} of {len(ledger)} questions kept")
    assert len(ledger) >= 1200 and kept >= 0.7 * len(ledger)

    data = {"dataset": questions, "traces": tmp_path / "traces"}
    traced = {**asked, "dataset": questions, "num_traces": 4, "max_tokens": 64, "batch_size": 256}
    run_stage("dataset_builders/traces.py", **traced, output_dir=tmp_path / "traces")
    checked = {"checker": seed / "models" / "checker" / "model", "verdict_mode": "transcript", "max_tokens": 32}
    run_stage("dataset_builders/verdicts.py", **data, **checked, batch_size=256, output_dir=tmp_path / "verdicts")
    corpus = {"verdicts": tmp_path / "verdicts", "license": "apache-2.0", "output_dir": tmp_path / "corpus"}
    run_stage("dataset_builders/cot_corpus.py", **data, **corpus)
    config = tiny.REPO / "recipes" / "miniature" / "sft_tts_agfv.yaml"
    base = {"audio": questions, "model_name_or_path": seed / "models" / "student" / "model", "seed": 0}
    run_stage("recipes/sft.py", config=config, traces=tmp_path / "corpus", **base, output_dir=tmp_path / "sft")
    test = {"benchmark": "avqa", "dataset": seed / "avqa-audio", "split": "test", "modality": "audio", "method": "cot"}
    evaluated = {**test, "max_tokens": 64, "batch_size": 256, "controls": "silent", "output_dir": tmp_path / "evaluation"}
    run_stage("-m", "evaluation", "run", **evaluated, model=tmp_path / "sft" / "model")
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]
    unfiltered = read_report(miniature)["sft-cot"]["accuracy"]
    print(f"from videos alone {results['none']['accuracy']:.1f} %, unfiltered with annotated questions {unfiltered:.1f} %")
    assert results["none"]["accuracy"] >= unfiltered + 8
    assert results["silent"]["accuracy"] <= CHANCE + 12


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
def test_claims_keep_more_questions_than_whole_traces_at_equal_teacher_cost(miniature: Path) -> None:
    done = subprocess.run(
        ["bash", "recipes/miniature/claims.sh"],
        cwd=tiny.REPO,
        env={**tiny._environment(), "OUTPUT": str(miniature), "SEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    cells = {name: row for line in done.stdout.splitlines() if (row := line.strip("| ").split(" | ")) and (name := row[0])}
    traces, claims = cells["whole traces"], cells["claims"]
    assert int(claims[1]) < int(traces[1]) == 2400 and int(claims[2]) > int(traces[2]), "fewer are asked, more are kept"
    left, accuracy = (([float(row[i].split(" ")[0]) for row in (traces, claims)]) for i in (4, 5))
    assert max(left) < 2, "of the sounds that the rows claim, in percent"
    assert accuracy[1] > 75 and accuracy[1] > accuracy[0] - 5, done.stdout

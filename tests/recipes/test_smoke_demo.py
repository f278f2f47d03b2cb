"""The whole line at toy size: every stage runs, what it writes opens, and kills change nothing."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import tiny
from tests.support.demo import SMOKE_ARMS, demo, finish, kill_session, read_predictions, read_report


@pytest.fixture(scope="module")
def smoke_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("smoke") / "out"
    finish(demo(output, SMOKE="1"))
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


@pytest.mark.slow
def test_the_demo_trains_a_student_of_another_family(tmp_path: Path) -> None:
    """Teacher and checker are the same as for the first family: the checker's base student is pretrained beside the student."""
    from transformers import AutoConfig

    finish(demo(tmp_path / "out", SMOKE="1", STUDENT="qwen2_5_omni"))
    report = read_report(tmp_path / "out")
    assert list(report) == SMOKE_ARMS and all(entry["n"] == 8 for entry in report.values())
    assert (tmp_path / "out" / "report.md").read_text().startswith(("DEAF: ", "Not deaf: ", "ANSWERS NOTHING: "))
    seed = tmp_path / "out" / "seed-0"
    for folder in ("models/student", "sft-label", "sft-tts_agfv", "grpo-tts_agfv"):
        assert AutoConfig.from_pretrained(seed / folder / "model").model_type == "qwen2_5_omni"
    for folder in ("models/checker-base", "models/checker"):
        assert AutoConfig.from_pretrained(seed / folder / "model").model_type == "qwen2_audio"


@pytest.mark.slow
def test_the_demo_trains_a_student_on_questions_of_the_teacher(smoke_demo: Path, tmp_path: Path) -> None:
    """World, base student and checker are those of the other demo, whose finished runs are beside its own in the report."""
    log = finish(demo(tmp_path / "out", SMOKE="1", QUESTIONS="teacher", ANNOTATED=str(smoke_demo)))
    assert log.splitlines()[-1].startswith("videos-*: ")
    seed = tmp_path / "out" / "seed-0"
    assert {path.name for path in (seed / "models").iterdir()} == {"teacher"}
    assert list(read_report(tmp_path / "out")) == [
        *("base", "videos-sft-cot", "videos-sft-tts_agfv", "grpo-tts_agfv", "videos-grpo-tts_agfv")
    ]
    ledger = pq.read_table(seed / "questions" / "ledger.parquet").to_pylist()
    assert {row["outcome"] for row in ledger} >= {"built"}
    traced = pq.read_table(seed / "corpus" / "ledger.parquet").to_pylist()
    assert traced and all(row["id"].startswith("tr") and "-q" in row["id"] for row in traced)


def stand_ins(folder: Path) -> str:
    """A PATH with programs in place of python and accelerate, which write down what they are given in `folder`."""
    (folder / "bin").mkdir()
    for name in ("python", "accelerate"):
        (folder / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/{name}-calls\n')
        (folder / "bin" / name).chmod(0o755)
    return f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"STUDENT": "qwen2_audoi"}, "STUDENT=qwen2_audoi is no student of the miniature; expected one of: STUDENTS"),
        (
            {"QUESTIONS": "teachers"},
            "QUESTIONS=teachers is no source of the miniature's questions; expected one of: annotated teacher",
        ),
    ],
)
def test_a_wrong_variable_is_refused_in_one_line_before_anything_is_made(
    tmp_path: Path, variables: dict[str, str], error: str
) -> None:
    process = demo(tmp_path / "out", **variables)
    output, _ = process.communicate()
    assert process.returncode == 2 and not (tmp_path / "out").exists()
    assert output == f"error: {error.replace('STUDENTS', ' '.join(tiny.miniature_builders().STUDENTS))}\n"


@pytest.mark.parametrize(
    ("variables", "folders"),
    [
        ({}, {"miniature"}),
        ({"STUDENT": "qwen2_audio", "SMOKE": "1"}, {"miniature-smoke"}),
        ({"STUDENT": "qwen2_5_omni"}, {"miniature-qwen2_5_omni"}),
        ({"STUDENT": "qwen2_5_omni", "SMOKE": "1"}, {"miniature-qwen2_5_omni-smoke"}),
        ({"QUESTIONS": "teacher"}, {"miniature-teacher"}),
        ({"QUESTIONS": "teacher", "STUDENT": "qwen2_5_omni", "SMOKE": "1"}, {"miniature-teacher-qwen2_5_omni-smoke"}),
    ],
)
def test_each_student_and_source_of_questions_has_a_folder_of_its_own(
    tmp_path: Path, variables: dict[str, str], folders: set[str]
) -> None:
    """In a copy of the script, because its default folder is beside it."""
    script = tmp_path / "recipes" / "miniature" / "run.sh"
    script.parent.mkdir(parents=True)
    script.write_text((tiny.REPO / "recipes" / "miniature" / "run.sh").read_text())
    variables = {"STUDENT": "", "SMOKE": "", "QUESTIONS": "", "OUTPUT": "", "PATH": stand_ins(tmp_path), **variables}
    subprocess.run(["bash", script], env={**tiny._environment(), **variables}, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == folders
    calls = (tmp_path / "python-calls").read_text()
    assert f"--family {variables['STUDENT'] or 'qwen2_audio'}" in calls
    assert ("models/checker-base/model" in calls) == (variables["STUDENT"] == "qwen2_5_omni")


def test_the_students_of_a_writing_teacher_are_given_no_annotated_question(tmp_path: Path) -> None:
    """What the demo calls: training reads what the teacher wrote, and the annotations are read for the evaluation alone."""
    out, annotated = tmp_path / "out", tmp_path / "annotated"
    finish(demo(out, QUESTIONS="teacher", ANNOTATED=str(annotated), PATH=stand_ins(tmp_path)))
    calls = [line for name in ("python", "accelerate") for line in (tmp_path / f"{name}-calls").read_text().splitlines()]
    readers = [call for call in calls if "avqa-audio" in call or "_qa.json" in call]
    assert {call.split()[1] for call in readers} == {"dataset_builders/avqa_audio.py", "-m"}
    assert all(" -m evaluation " in call for call in readers if call.split()[1] == "-m")
    trained = [call for call in calls if "recipes/sft.py" in call or "recipes/grpo.py" in call]
    assert len(trained) == 3 and all(f"--audio {os.path.relpath(out, tiny.REPO)}/seed-0/questions " in call for call in trained)
    (cut,) = [call for call in calls if "videos.py" in call]
    assert "--files tr*" in cut, "the clips of the training split alone"


@pytest.mark.parametrize("smoke", ["", "1"])
def test_the_demo_ends_with_the_whole_report_command_and_says_what_smoke_figures_mean(tmp_path: Path, smoke: str) -> None:
    """The script itself; programs in place of the real ones write down what they are given."""
    out = tmp_path / "out"
    for file in ("evaluation/base/results.json", "sft-label/trainer_state.json"):
        (out / "seed-0" / file).parent.mkdir(parents=True)
        (out / "seed-0" / file).touch()
    lines = finish(demo(out, SMOKE=smoke, PATH=stand_ins(tmp_path))).splitlines()
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

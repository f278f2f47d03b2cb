"""The whole line over real videos (10 s, stereo, 44.1 kHz, several codecs): plumbing and accounting, not accuracy."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sightsound.data import parquet, schema
from sightsound.data.audio import encode_flac, load_clip
from sightsound.hub.cards import write_dataset_card
from sightsound.method.prompts import CHECKER_TRANSCRIPT, TEACHER_PROMPT, question_text, render_trace
from tests.support import tiny
from tests.support.recipes import launch


CHOICES = ["water", "speech", "music", "engine"]
QUESTION = "What is heard in the video?"
TRAIN = ["bbb_0.webm", "bbb_1.webm", "mdn_elf.mp4", "mdn_monster.webm", "mdn_stream_of_water.mp4", "tears_of_steel_0.webm"]
TRAIN += [
    "mdn_friday_audio_first.mp4",
    "nasa_13013_two_av_pairs.mp4",
    "mdn_bug_no_audio_stream.mp4",
    "mdn_flower_silent_track.webm",
]
TEST = ["bbb_2.webm", "tears_of_steel_1.webm", "mdn_pig.mp4", "mdn_rabbit320.mp4"]
WINDOW_S = 2.0


def annotate(files: list[str], videos: Path, clips: Path, split: str) -> Path:
    """AVQA-format annotations of real files, which are put under AVQA names."""
    rows = []
    for i, file in enumerate(files):
        name = f"{split}{i:0{11 - len(split)}d}_000000"
        shutil.copy(videos / file, clips / f"{name}{Path(file).suffix}")
        row = {"id": i, "video_name": name, "video_id": i, "question_text": QUESTION, "multi_choice": CHOICES, "answer": 0}
        rows.append({**row, "question_relation": "Both", "question_type": "Which"})
    path = clips.parent / f"{split}_qa.json"
    path.write_text(json.dumps(rows))
    return path


def write_pretraining(world: Path, videos: Path) -> None:
    """Two rows per model: enough to teach it one sentence, so that teacher and checker agree on something."""
    from datasets import Audio, Features, Value

    answer = {"completion": render_trace("I hear a water.", "water")}
    sounds = [encode_flac(load_clip(str(videos / file), max_duration_s=WINDOW_S)) for file in TRAIN[:4]]
    corpora: dict[str, list[dict[str, Any]]] = {
        "teacher": [
            {"prompt": question_text(QUESTION, CHOICES, TEACHER_PROMPT), "video": str(videos / file), **answer}
            for file in TRAIN[:4]
        ],
        "student": [{"prompt": "Describe.", "completion": "A sound.", "audio": {"bytes": s, "path": None}} for s in sounds],
        "checker": [
            {"prompt": CHECKER_TRANSCRIPT, "completion": "I hear a water.", "audio": {"bytes": s, "path": None}} for s in sounds
        ],
    }
    for name, rows in corpora.items():
        medium = "video" if name == "teacher" else "audio"
        media = Value("string") if medium == "video" else Audio(sampling_rate=schema.SAMPLING_RATE)
        features = Features({"prompt": Value("string"), "completion": Value("string"), medium: media})
        folder = world / "pretraining" / name
        parquet.write_parquet(rows, features, folder / "data" / "train-00000-of-00001.parquet")
        write_dataset_card(folder, f"# {name}\n", {"default": {"train": "data/*.parquet"}})


def run(script: str, **flags: Any) -> str:
    done = tiny.run_script(script, **flags)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def evaluate(*arguments: str) -> None:
    import subprocess

    command = [sys.executable, "-m", "evaluation", *arguments]
    done = subprocess.run(command, cwd=tiny.REPO, env=tiny._environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_real_videos_go_through_every_stage(real_data: Path, tmp_path: Path) -> None:
    videos, world, clips = real_data / "video", tmp_path / "world", tmp_path / "clips"
    clips.mkdir()
    annotations = {"train": annotate(TRAIN, videos, clips, "tr"), "test": annotate(TEST, videos, clips, "te")}
    write_pretraining(world, videos.resolve())
    models = tmp_path / "models"
    sizes = {"max_steps": 80, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "world": world}
    for name in ("student", "teacher", "checker"):
        init = {"init_from": models / "student" / "model"} if name == "checker" else {}
        recipe = tiny.REPO / "recipes" / "miniature" / f"{name}.yaml"
        run("recipes/miniature/pretrain.py", config=recipe, output_dir=models / name, **sizes, **init)

    data = tmp_path / "avqa-audio"
    message = run(
        "dataset_builders/avqa_audio.py",
        train_annotations=annotations["train"],
        test_annotations=annotations["test"],
        media_dir=clips,
        output_dir=data,
    )
    assert "14 annotations: 12 built" in message
    outcomes = [row["outcome"] for row in tiny.read_ledger(data)]
    assert outcomes == [schema.BUILT] * 8 + [schema.NO_AUDIO, schema.SILENT] + [schema.BUILT] * 4
    rows = tiny.read_rows(data)
    assert {row["question"] for row in rows} == {"What is heard in the audio?"}

    run(
        "dataset_builders/traces.py",
        dataset=data,
        media_dir=clips,
        model=models / "teacher" / "model",
        num_traces=2,
        temperature=0.1,
        max_tokens=48,
        num_frames=8,
        output_dir=tmp_path / "traces",
    )
    run(
        "dataset_builders/verdicts.py",
        dataset=data,
        traces=tmp_path / "traces",
        checker=models / "checker" / "model",
        verdict_mode="transcript",
        output_dir=tmp_path / "verdicts",
    )
    verdicts = tiny.read_rows(tmp_path / "verdicts")
    assert [row["id"] for row in verdicts] == [row["id"] for row in rows]
    assert {row["checker_heard_s"] for row in verdicts} == {WINDOW_S}  # cut knowingly, and the row says so
    steps = {"dataset": data, "traces": tmp_path / "traces", "verdicts": tmp_path / "verdicts"}
    run("dataset_builders/cot_corpus.py", **steps, output_dir=tmp_path / "corpus")
    accepted = [row for row in tiny.read_ledger(tmp_path / "corpus") if row["outcome"] == schema.ACCEPTED]
    assert accepted

    inputs = {"traces": tmp_path / "corpus", "audio": data, "max_steps": 2}
    miniature = tiny.REPO / "recipes" / "miniature"
    done = launch(
        "sft",
        config=miniature / "sft_tts_agfv.yaml",
        model_name_or_path=models / "student" / "model",
        output_dir=tmp_path / "sft",
        per_device_train_batch_size=4,
        **inputs,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    used = [row for row in tiny.read_ledger(tmp_path / "sft") if row["outcome"] == "used"]
    assert len(used) >= len(accepted)
    assert all(row["detail"].startswith("cut: the model hears 2 of") for row in used)
    done = launch(
        "grpo",
        config=miniature / "grpo_tts_agfv.yaml",
        model_name_or_path=tmp_path / "sft" / "model",
        output_dir=tmp_path / "grpo",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        **inputs,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    run_flags = ["--dataset", str(data), "--split", "test", "--model", str(tmp_path / "grpo" / "model"), "--method", "cot"]
    run_dir = tmp_path / "evaluation" / "grpo"
    evaluate("run", *run_flags, "--controls", "silent", "swapped", "--max_tokens", "16", "--output_dir", str(run_dir))
    predictions = pq.read_table(run_dir / "data" / "predictions-avqa.parquet").to_pylist()
    assert len(predictions) == 3 * len(TEST)
    assert all(row["heard_s"] == WINDOW_S < row["duration_s"] for row in predictions)
    assert json.loads((run_dir / "results.json").read_text())["clips_cut"] == len(TEST)
    evaluate("report", "--runs", str(run_dir), "--training", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "report"))
    entry = json.loads((tmp_path / "report" / "report.json").read_text())[0]
    assert entry["n"] == len(TEST) and np.isfinite(entry["accuracy"])

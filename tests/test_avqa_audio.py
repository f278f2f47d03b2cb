"""The first builder, run as a user runs it: every annotation ends in the ledger, and a killed run continues."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPO
from test_media import media_rows, pitch_hz

from sightsound.media import decode_audio
from sightsound.schema import avqa_audio_features, open_dataset


COLUMNS = ["id", "video_id", "start_s", "audio", "duration_s", "question", "video_question", "choices", "answer"]
COLUMNS += ["answer_text", "question_relation", "question_type", "media_sha256"]


def annotation(row_id, name: str, **fields) -> dict:
    """A row in AVQA's own format."""
    return {
        "id": row_id,
        "video_name": name,
        "video_id": 7,
        "question_text": "What is the main source of sound in the video?",
        "multi_choice": ["dog", " bell", "siren", "drum"],
        "answer": 1,
        "question_relation": "Both",
        "question_type": "Come From",
    } | fields


def command(folder: Path, annotations: list | Path, *flags: str) -> list[str]:
    file = annotations
    if isinstance(annotations, list):
        file = folder / "train_qa.json"
        file.write_text(json.dumps(annotations))
    (folder / "clips").mkdir(exist_ok=True)
    script = str(REPO / "dataset_builders" / "avqa_audio.py")
    paths = ["--train_annotations", str(file), "--media_dir", str(folder / "clips"), "--output_dir", str(folder / "out")]
    return [sys.executable, script, *paths, "--num_proc", "1", *flags]


def build(folder: Path, annotations: list | Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, annotations, *flags), capture_output=True, text=True, check=False)


def ledger(folder: Path) -> list[dict]:
    return pq.read_table(folder / "out" / "ledger.parquet").to_pylist()


ROWS = {
    "good": (annotation(1, "06GyG4-wONQ_000006"), "built"),
    "missing": (annotation(2, "missing___-_000006"), "missing_media"),
    "corrupt": (annotation(3, "corrupt___-_000006"), "corrupt_media"),
    "no audio": (annotation(4, "noaudio___-_000006"), "no_audio"),
    "silent": (annotation(5, "silent____-_000006"), "silent"),
    "three choices": (annotation(6, "06GyG4-wONQ_000006", multi_choice=["a", "b", "c"]), "wrong_choice_count"),
    "choices are text": (annotation(7, "06GyG4-wONQ_000006", multi_choice="abcd"), "wrong_choice_count"),
    "answer too large": (annotation(8, "06GyG4-wONQ_000006", answer=4), "answer_out_of_range"),
    "answer negative": (annotation(9, "06GyG4-wONQ_000006", answer=-1), "answer_out_of_range"),
    "answer is text": (annotation(10, "06GyG4-wONQ_000006", answer="bell"), "answer_out_of_range"),
    "repeated": (annotation(1, "06GyG4-wONQ_000006"), "duplicate_id"),
    "path": (annotation(11, "../../../secret_000006"), "bad_annotation"),
    "missing, then repeated": (annotation(2, "06GyG4-wONQ_000006"), "duplicate_id"),
    "bad, then good": (annotation(8, "06GyG4-wONQ_000006"), "built"),
    "repeated and bad": (annotation(8, "06GyG4-wONQ_000006", answer=4), "answer_out_of_range"),
    "null": (annotation(None, "06GyG4-wONQ_000006"), "bad_annotation"),
    "null again": (annotation(None, "06GyG4-wONQ_000006"), "bad_annotation"),
    "not an object": ("a string", "bad_annotation"),
    "no question": ({k: v for k, v in annotation(12, "06GyG4-wONQ_000006").items() if k != "question_text"}, "bad_annotation"),
    "good elsewhere": (annotation(13, "-HXwnBVE19E_000002", answer=0), "built"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_clip) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("avqa")
    clips = folder / "clips"
    write_clip(clips / "06GyG4-wONQ_000006.mp4", [(440.0, 44_100, 2)])
    write_clip(clips / "deep" / "-HXwnBVE19E.mkv", [(660.0, 22_050, 1)], duration_s=13.0, fps=2)
    write_clip(clips / "noaudio___-_000006.mp4", tracks=[])
    write_clip(clips / "silent____-_000006.mp4", [(0.0, 44_100, 1)])
    (clips / "corrupt___-_000006.mp4").write_bytes(b"<html>video unavailable</html>")
    write_clip(folder / "secret_000006.mp4")
    return folder, build(folder, [row for row, _ in ROWS.values()])


def test_every_annotation_is_in_the_ledger_once_with_its_outcome(built):
    folder, done = built
    assert done.returncode == 0, done.stderr
    entries = ledger(folder)
    ids = [str(row["id"]) if isinstance(row, dict) else "" for row, _ in ROWS.values()]
    assert [(e["id"], e["outcome"]) for e in entries] == [
        (row_id, outcome) for row_id, (_, outcome) in zip(ids, ROWS.values(), strict=True)
    ]
    assert all((e["detail"] is None) == (e["outcome"] == "built") for e in entries)
    assert "20 annotations: " in done.stdout
    card = (folder / "out" / "README.md").read_text()
    assert all(f"| {outcome} | {count} |" in card for outcome, count in Counter(e["outcome"] for e in entries).items())


def test_the_dataset_loads_as_the_published_one(built):
    import datasets

    folder, _ = built
    loaded = datasets.load_dataset(str(folder / "out"), split="train")
    assert loaded.column_names == COLUMNS
    assert loaded.features == avqa_audio_features()
    first, _, second = open_dataset(str(folder / "out"), "train")
    assert {k: v for k, v in first.items() if k not in ("audio", "media_sha256", "duration_s")} == {
        "id": "1",
        "video_id": "06GyG4-wONQ",
        "start_s": 6.0,
        "question": "What is the main source of sound in the audio?",
        "video_question": "What is the main source of sound in the video?",
        "choices": ["dog", " bell", "siren", "drum"],
        "answer": 1,
        "answer_text": " bell",
        "question_relation": "Both",
        "question_type": "Come From",
    }
    for row, hz, duration_s in ((first, 440, 1.0), (second, 660, 10.0)):
        heard = decode_audio(row["audio"])
        assert heard.waveform.ndim == 1
        assert row["duration_s"] == heard.duration_s == pytest.approx(duration_s, abs=0.05), "cut at start..start+10 s"
        assert pitch_hz(heard.waveform) == pytest.approx(hz, abs=1)
        assert len(row["media_sha256"]) == 64


def test_a_finished_build_is_left_alone(built):
    folder, _ = built
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.parquet")}
    done = build(folder, [row for row, _ in ROWS.values()])
    assert (done.returncode, done.stdout) == (0, f"{folder / 'out'} is complete\n")
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.parquet")} == before


def test_other_annotations_are_not_mixed_into_a_build(built):
    folder, _ = built
    other = folder / "other.json"
    other.write_text("[]")
    done = build(folder, other)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was started with other settings (train_annotations:" in done.stderr


def test_a_field_that_is_null_costs_its_row_and_not_the_run(tmp_path, built):
    (tmp_path / "clips").symlink_to(built[0] / "clips")
    fields = ["question_text", "video_name", "multi_choice", "answer", "id"]
    good = "06GyG4-wONQ_000006"
    rows = [
        annotation(0, good),
        *(annotation(i, good, **{name: None}) for i, name in enumerate(fields, 1)),
        annotation(9, good),
    ]
    done = build(tmp_path, rows)
    assert done.returncode == 0, done.stderr
    first, *broken, last = [entry["outcome"] for entry in ledger(tmp_path)]
    assert (first, last) == ("built", "built")
    expected = ["bad_annotation", "bad_annotation", "wrong_choice_count", "answer_out_of_range", "bad_annotation"]
    assert dict(zip(fields, broken, strict=True)) == dict(zip(fields, expected, strict=True))


def test_clips_that_were_added_after_a_run_without_any_are_found(tmp_path, write_clip):
    rows = [annotation(1, "06GyG4-wONQ_000006")]
    assert build(tmp_path, rows).returncode == 2
    write_clip(tmp_path / "clips" / "06GyG4-wONQ_000006.mp4")
    done = build(tmp_path, rows)
    assert done.returncode == 0, done.stderr


def test_a_shard_or_a_split_without_a_usable_row_does_not_spoil_the_others(tmp_path, built):
    (tmp_path / "clips").symlink_to(built[0] / "clips")
    missing = [annotation(i, "missing___-_000006") for i in range(500)]
    (tmp_path / "val_qa.json").write_text(json.dumps(missing[:1]))
    rows = [*missing, annotation(500, "06GyG4-wONQ_000006")]
    done = build(tmp_path, rows, "--validation_annotations", str(tmp_path / "val_qa.json"))
    assert done.returncode == 0, done.stderr
    assert open_dataset(str(tmp_path / "out"), "train")["id"][:] == ["500"]


def many() -> list[dict]:
    """Three shards; three rows of four have no clip, which costs no time."""
    return [annotation(i, "missing___-_000006" if i % 4 else "06GyG4-wONQ_000006") for i in range(1001)]


def data_bytes(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    files = [*(out / "data").iterdir(), out / "ledger.parquet", out / "README.md"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_a_killed_build_continues_and_ends_with_the_same_bytes(tmp_path, write_clip):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        write_clip(folder / "clips" / "06GyG4-wONQ_000006.wav", [(440.0, 16_000, 1)], duration_s=0.25, fps=0)
    assert build(whole, many()).returncode == 0
    # A session of its own, so that the kill takes the worker processes as well.
    process = subprocess.Popen(
        command(killed, many()), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first_shard = killed / "out" / "ledger" / "train-00000-of-00003.parquet"
    while not first_shard.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert first_shard.exists()
    assert not (killed / "out" / "ledger.parquet").exists(), "it was killed too late to prove anything"
    kept = first_shard.stat().st_mtime_ns
    assert build(killed, many()).returncode == 0
    assert first_shard.stat().st_mtime_ns == kept, "a finished shard is not made again"
    assert data_bytes(killed) == data_bytes(whole)


def test_real_videos_become_rows_of_the_right_length(tmp_path, real_data):
    videos = media_rows(real_data)
    (tmp_path / "clips").mkdir()
    rows = []
    for i, video in enumerate(videos):
        name = f"real-video{i % 10}_{i:06d}"
        (tmp_path / "clips" / f"{name}{Path(video['file']).suffix}").symlink_to((real_data / video["file"]).resolve())
        rows.append(annotation(i, name))
    done = build(tmp_path, rows)
    assert done.returncode == 0, done.stderr
    outcomes = {Path(video["file"]).stem: entry["outcome"] for video, entry in zip(videos, ledger(tmp_path), strict=True)}
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "built"} == {
        "mdn_bug_no_audio_stream": "no_audio",
        "mdn_flower_silent_track": "silent",
    }
    by_id = {row["id"]: row for row in open_dataset(str(tmp_path / "out"), "train")}
    assert len(by_id) == 23
    for i, video in enumerate(videos):
        if str(i) in by_id:
            row = by_id[str(i)]
            # Container against sound: the two tracks of a real file end a few frames apart.
            assert row["duration_s"] == pytest.approx(float(video["duration_s"]), abs=0.1), video["file"]
            assert row["media_sha256"] == video["sha256"]
            heard = decode_audio(row["audio"])
            assert heard.duration_s == row["duration_s"]
            assert np.abs(heard.waveform).max() > 0.01


def test_the_real_annotations_without_clips_are_all_accounted_for(tmp_path, real_data):
    done = build(tmp_path, real_data / "annotations" / "avqa" / "train_qa.subset.json")
    assert Counter(entry["outcome"] for entry in ledger(tmp_path)) == {"missing_media": 8710}
    assert len({entry["id"] for entry in ledger(tmp_path)}) == 8710
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.lstrip().startswith("shards:") and line]
    assert len(said) == 1, done.stderr
    assert "no row could be built from 8710 annotations (8710 missing_media)" in said[0]
    assert "06GyG4-wONQ_000006.mp4" in said[0]

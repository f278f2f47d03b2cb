"""Files that kill the process that decodes them, files that give way to others, and files that many questions share."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sightsound.building.sounds import decode_first
from sightsound.data.audio import decode_audio
from sightsound.data.clips import Clip
from tests.support import tiny
from tests.support.avqa import annotation
from tests.support.clips import pitch_hz
from tests.support.tiny import REPO


# Put first on a builder's path: its workers die as a bug in a decoder (by a file's name, each time) or the system's
# out-of-memory killer (once) would have it, and every file that is hashed is written down.
FAULTS = """
import hashlib, os, signal
import av

_open, _digest = av.open, hashlib.file_digest

def faulty_open(file, *args, **kwargs):
    name = os.path.basename(str(file))
    if name.startswith("kills"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("victim") and not os.path.exists("victim_was_killed"):
        open("victim_was_killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("odd"):
        raise ValueError("no such codec parameters")
    return _open(file, *args, **kwargs)

def logged_digest(file, name):
    with open("hashed", "a") as log:
        log.write(f"{os.path.basename(str(file.name))}\\n")
    return _digest(file, name)

av.open, hashlib.file_digest = faulty_open, logged_digest
"""
# Video -> what becomes of the question about it.
GOOD_OR_BAD = {
    "odd": "corrupt_media",
    "silent": "built",
    "broken": "built",
    "no sound": "no_audio",
    "kept": "built",
    "nowhere": "missing_media",
}
DEADLY = {"kills": "decoder_crashed", "victim": "built"}
SHARED = [f"06GyG4-wONQ_{start_s:06d}" for start_s in range(12)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_clip) -> Path:
    clips = tmp_path_factory.mktemp("sounds") / "clips"
    short = {"duration_s": 0.5}
    for name in ("kills", "victim", "odd", "kept"):
        write_clip(clips / f"{name}.mp4", **short)
    write_clip(clips / "silent.mp4", [(0.0, 44_100, 1)], **short)
    (clips / "broken.mp4").write_bytes(b"<html>video unavailable</html>")
    write_clip(clips / "no sound.mp4", tracks=[], **short)
    for name in ("silent", "broken", "kept"):
        write_clip(clips / "sounds" / f"{name}.wav", [(880.0, 16_000, 1)], fps=0, **short)
    write_clip(clips / "06GyG4-wONQ.mkv", [(440.0, 22_050, 1)], duration_s=13.0, fps=2)
    return clips


def build(folder: Path, clips: Path, names: list[str], num_proc: int) -> subprocess.CompletedProcess[str]:
    (folder / "faults").mkdir(parents=True)
    (folder / "faults" / "sitecustomize.py").write_text(FAULTS)
    (folder / "clips").symlink_to(clips)
    rows = [annotation(i, name) for i, name in enumerate(names)]
    for file, part in (("train_qa.json", rows), ("val_qa.json", rows[-2:])):
        (folder / file).write_text(json.dumps(part))
    paths = ["--train_annotations", "train_qa.json", "--validation_annotations", "val_qa.json", "--media_dir", "clips"]
    script = [sys.executable, str(REPO / "dataset_builders" / "avqa_audio.py"), *paths, "--output_dir", "out"]
    environment = os.environ | {"PYTHONPATH": f"{folder / 'faults'}:{REPO}"}
    command = [*script, "--num_proc", str(num_proc)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built(clips) -> tuple[Path, subprocess.CompletedProcess[str]]:
    return clips.parent / "built", build(clips.parent / "built", clips, [*GOOD_OR_BAD, *SHARED], num_proc=2)


def by_name(folder: Path, names: Iterable[str], field: str) -> dict[str, Any]:
    return {name: entry[field] for name, entry in zip(names, tiny.read_ledger(folder / "out"), strict=False)}


def test_every_kind_of_clip_ends_in_its_outcome(built):
    assert by_name(built[0], GOOD_OR_BAD, "outcome") == GOOD_OR_BAD


def test_what_the_media_library_raises_about_a_file_is_its_outcome(built):
    assert by_name(built[0], GOOD_OR_BAD, "detail")["odd"] == "odd.mp4: cannot be decoded: no such codec parameters"


def test_a_file_that_cannot_be_used_gives_way_to_another_of_its_name(built):
    folder, done = built
    details = by_name(folder, GOOD_OR_BAD, "detail")
    assert details["silent"] == "sounds/silent.wav was used; silent.mp4: the audio stream is silent"
    assert details["broken"].startswith("sounds/broken.wav was used; broken.mp4: cannot be opened")
    assert details["no sound"] == "no sound.mp4: the file has no audio stream"
    assert details["kept"] is None, "the video is good, so its sound is taken"
    rows = {row["video_id"]: row for row in tiny.read_rows(folder / "out")}
    for name, hz in (("silent", 880), ("broken", 880), ("kept", 440)):
        assert pitch_hz(decode_audio(rows[name]["audio"]).waveform) == pytest.approx(hz, abs=2), name
    assert "one of several files was taken for 2 rows; the first, id 1: sounds/silent.wav was used" in done.stdout


def test_a_file_that_kills_its_process_gives_way_too(tmp_path, write_clip):
    kills, good = Clip(str(tmp_path / "a.mp4")), Clip(str(write_clip(tmp_path / "a.wav", fps=0)))
    sound = decode_first([kills, good], str(tmp_path), frozenset({kills}))
    assert (sound.clip, sound.failures) == (good, (("decoder_crashed", "a.mp4: the process that decoded it crashed"),))


def test_a_file_that_many_questions_share_is_hashed_once(built):
    folder, _ = built
    hashed = Counter((folder / "hashed").read_text().splitlines())
    assert hashed["06GyG4-wONQ.mkv"] == 1, "for twelve questions, two of them in both splits"
    digests = {row["media_sha256"] for row in tiny.read_rows(folder / "out") if row["video_id"] == "06GyG4-wONQ"}
    assert len(digests) == 1


@pytest.mark.slow
def test_a_worker_that_dies_costs_the_row_whose_clip_kills_it_and_no_other(clips, tmp_path):
    names = [*DEADLY, *GOOD_OR_BAD, *SHARED]
    results = []
    for num_proc in (2, 1):
        folder = tmp_path / str(num_proc)
        done = build(folder, clips, names, num_proc)
        assert by_name(folder, names, "outcome") == DEADLY | GOOD_OR_BAD | dict.fromkeys(SHARED, "built")
        details = by_name(folder, names, "detail")
        assert details["kills"] == "kills.mp4: the process that decoded it crashed"
        assert "decoder_crashed: train, id 0: kills.mp4: the process that decoded it crashed" in done.stdout
        assert (folder / "victim_was_killed").exists() and details["victim"] is None, "killed from outside, it is tried again"
        results.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")})
    assert results[0] == results[1] and len(results[0]) == 5, "the result does not depend on the number of workers"

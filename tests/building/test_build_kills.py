"""
A build that is killed at any moment, and again while it continues, ends with the bytes of one that nobody killed.

Kills are SIGKILL to the whole session, as an out-of-memory killer, a scheduler or a closed lid would leave it; their moments
are drawn evenly over the time that an uninterrupted build takes.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sightsound.building.audio_dataset import ROWS_PER_SHARD
from tests.support.avqa import annotation, command
from tests.support.clips import write_clip as _write_clip


TIME_LIMIT_S = 300  # of one build
CLIP_HZ = (220.0, 440.0, 880.0, 0.0)  # the last one is silent
NUM_SHARDS = 4
MAX_KILLS = 5  # of one folder, before it is let run to its end
FLAGS = ("--validation_annotations", "val_qa.json")


def name(clip: int) -> str:
    return f"clip{clip}-______000006"


def make_input(folder: Path) -> list[dict]:
    """
    Two and a half shards of train and a small one of validation.

    One row of five has a silent clip, one has none, and every 50th row repeats an id.
    """
    for clip, hz in enumerate(CLIP_HZ):
        _write_clip(folder / "clips" / f"{name(clip)}.wav", [(hz, 16_000, 1)], duration_s=0.3, fps=0)
    rows = [annotation(i - (i % 50 == 49), name(i % 5)) for i in range(round(2.5 * ROWS_PER_SHARD))]
    (folder / "val_qa.json").write_text(json.dumps(rows[: ROWS_PER_SHARD // 5]))
    return rows


def start(folder: Path) -> subprocess.Popen:
    """The build, as the leader of a session of its own; one worker, so that shards end one after the other."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(folder, make_input(folder), *FLAGS), cwd=folder, start_new_session=True, **quiet)


def result(folder: Path) -> dict[str, bytes]:
    """
    Everything in the folder: what is published, what tells the stage, and nothing half written.

    `stage.json` has the whole path of the clips, so that a rerun may write it in another way. Two builds differ in where they
    are, and in nothing else: that part of the path is replaced.
    """
    out = folder / "out"
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    clips = json.dumps(os.path.realpath(folder / "clips")).encode()
    assert files["stage.json"].count(clips) == 1
    return files | {"stage.json": files["stage.json"].replace(clips, b'"clips"')}


@dataclass
class Whole:
    """An uninterrupted build."""

    result: dict[str, bytes]
    took_s: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    begun_s = time.monotonic()
    assert start(folder).wait(TIME_LIMIT_S) == 0
    took_s = time.monotonic() - begun_s
    built = result(folder)
    shards = [*(f"train-0000{i}-of-00003.parquet" for i in range(3)), "validation-00000-of-00001.parquet"]
    assert len(shards) == NUM_SHARDS
    expected = [f"{part}/{shard}" for part in ("data", "ledger") for shard in shards]
    assert sorted(built) == sorted([*expected, "ledger.parquet", "README.md", "stage.json", ".lock"])
    return Whole(built, took_s)


def is_half_done(folder: Path) -> bool:
    """Whether a shard is done and another is not."""
    return 0 < len(list((folder / "out" / "ledger").glob("*.parquet"))) < NUM_SHARDS


def kill_after(folder: Path, seconds: float) -> bool:
    """Run the build and kill it then; False if it ended before."""
    process = start(folder)
    try:
        return process.wait(seconds) != 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def kill_and_finish(tmp_path: Path, whole: Whole, num_kills: int, seed: int) -> tuple[int, int]:
    """Kills in folder after folder, each of which is then built to its end; returns how many were half done and not begun."""
    moments = np.random.default_rng(seed)
    killed = half_done = untouched = folders = 0
    while killed < num_kills:
        folder = tmp_path / str(folders)
        folder.mkdir()
        folders += 1
        # An idle machine builds faster than the busy one on which the whole build was timed.
        assert folders <= 3 * num_kills + 5, "builds keep ending before they are killed"
        in_this_folder = 0
        while killed < num_kills and in_this_folder < MAX_KILLS and kill_after(folder, moments.uniform(0, whole.took_s)):
            killed, in_this_folder = killed + 1, in_this_folder + 1
            half_done += is_half_done(folder)
            untouched += not (folder / "out" / "stage.json").exists()
        assert start(folder).wait(TIME_LIMIT_S) == 0
        built = result(folder)
        changed = [file for file in sorted(built.keys() | whole.result.keys()) if built.get(file) != whole.result.get(file)]
        assert not changed, f"{folder}, after {in_this_folder} kills"
    return half_done, untouched


@pytest.mark.storm
def test_builds_killed_fifty_times_end_with_the_same_bytes(tmp_path, whole, storm_seed):
    half_done, untouched = kill_and_finish(tmp_path, whole, num_kills=50, seed=storm_seed)
    print(f"50 kills: {half_done} with some shards done, {untouched} before anything was written")
    assert half_done >= 5, "they were too early or too late to prove anything"

"""A build from videos that is killed, or divided among ranks, ends with the bytes of one that was not; and in flat memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny import REPO, _environment
from tests.support.videos import MOVING, concatenate, write_video


TIME_LIMIT_S = 300
NUM_VIDEOS = 24


def command(folder: Path, *flags: str) -> list[str]:
    script = str(REPO / "dataset_builders" / "videos.py")
    paths = ["--source", "videos", "--output_dir", "out", "--segment_s", "2", "--num_proc", "1"]
    return [sys.executable, script, *paths, *flags]


def start(folder: Path, *flags: str) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(folder, *flags), cwd=folder, env=_environment(), start_new_session=True, **quiet)


def finish(folder: Path, *flags: str) -> None:
    process = start(folder, *flags)
    _, stderr = process.communicate(timeout=TIME_LIMIT_S)
    assert process.returncode == 0, stderr


def result(folder: Path) -> dict[str, bytes]:
    """Everything in the folder, with the path of the videos and the command replaced, which differ."""
    files = {str(path.relative_to(folder / "out")): path for path in sorted((folder / "out").rglob("*")) if path.is_file()}
    content = {name: path.read_bytes() for name, path in files.items()}
    content["stage.json"] = content["stage.json"].replace(os.path.realpath(folder).encode(), b"")
    content["README.md"] = content["README.md"].partition(b"## How it was built")[0]
    return content


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos and its uninterrupted build: two copies among them, and silence."""
    folder = tmp_path_factory.mktemp("whole")
    for i in range(NUM_VIDEOS):
        write_video(folder / "videos" / f"{i:02d}.mp4", i - (i % 8 == 7), [(4.0, i % 8 != 3, MOVING)], crf=20 + i % 8)
    finish(folder)
    names = set(result(folder))
    assert {"README.md", "stage.json", "ledger.parquet", ".lock", "data/train-00000-of-00001.parquet"} <= names
    assert all(name.startswith("segments/") for name in names if name.endswith(".mp4")) and len(names) == 5 + 36
    return folder


def copy_of(whole: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copytree(whole / "videos", folder / "videos")  # with the times of the files, by which their parts are known
    return folder


def check_equal(folder: Path, whole: Path) -> None:
    built, expected = result(folder), result(whole)
    assert [name for name in sorted(built.keys() | expected.keys()) if built.get(name) != expected.get(name)] == []


def kill_when(folder: Path, num_parts: int) -> bool:
    """Kill the build when so many videos are done; False if it ended before."""
    process = start(folder)
    while process.poll() is None and len(list((folder / "out" / ".work").glob("*/*/*.parquet"))) < num_parts:
        time.sleep(0.01)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return killed


@pytest.mark.slow
def test_a_build_that_is_killed_twice_ends_with_the_same_bytes(whole, tmp_path):
    folder = copy_of(whole, tmp_path / "killed")
    assert kill_when(folder, 5)
    done = sorted((folder / "out" / ".work").glob("*/*/*.parquet"))
    times = [path.stat().st_mtime_ns for path in done]
    assert kill_when(folder, NUM_VIDEOS - 4)
    assert [path.stat().st_mtime_ns for path in done] == times, "what was done is not done again"
    finish(folder)
    check_equal(folder, whole)


@pytest.mark.parametrize(
    "executor", [pytest.param("local", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.storm)]
)
def test_two_ranks_write_what_one_run_writes(executor, whole, tmp_path):
    folder = copy_of(whole, tmp_path / "ranks")
    finish(folder, "--executor", executor, "--num_tasks", "2")
    check_equal(folder, whole)


@pytest.mark.slow
def test_what_one_rank_has_done_is_taken_by_one_run(whole, tmp_path):
    folder = copy_of(whole, tmp_path / "rank")
    finish(folder, "--num_tasks", "2", "--rank", "1")
    done = sorted((folder / "out" / ".work").glob("*/*/*.parquet"))
    assert len(done) == NUM_VIDEOS // 2
    finish(folder)
    check_equal(folder, whole)


@pytest.mark.storm
def test_builds_killed_twenty_times_end_with_the_same_bytes(whole, tmp_path, storm_seed):
    moments = np.random.default_rng(storm_seed)
    begun_s = time.monotonic()
    finish(copy_of(whole, tmp_path / "timed"))
    took_s, killed, folders, half_done = time.monotonic() - begun_s, 0, 0, 0
    while killed < 20:
        folder = copy_of(whole, tmp_path / str(folders))
        folders += 1
        assert folders < 60, "builds keep ending before they are killed"
        for _ in range(5):
            process = start(folder)
            try:
                process.communicate(timeout=moments.uniform(0, took_s))
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                killed += 1
                half_done += 0 < len(list((folder / "out" / ".work").glob("*/*/*.parquet"))) < NUM_VIDEOS
        finish(folder)
        check_equal(folder, whole)
    print(f"{killed} kills of {folders} builds, {half_done} of them half done")


def peak_mib(arguments: list[str]) -> float:
    """
    The highest sum of what the processes of a command have allocated.

    Without the pages of files, libraries that is: the system drops and reads them again as it likes, and 100 MB of them more or
    less are in memory from run to run.
    """
    process = subprocess.Popen(arguments, env=_environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        total = 0
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if os.getsid(int(entry.name)) == process.pid:
                    _, resident, of_files, *_ = map(int, (entry / "statm").read_text().split())
                    total += resident - of_files
        peak = max(peak, total * os.sysconf("SC_PAGE_SIZE") / 2**20)
        time.sleep(0.1)
    assert process.returncode == 0
    return peak


@pytest.mark.storm
def test_memory_is_flat_from_100_to_1000_segments(tmp_path):
    pieces = [write_video(tmp_path / f"{i}.mp4", i, [(2.0, True, MOVING)], fps=5) for i in range(1000)]
    peaks = []
    for count in (100, 1000):
        # Of 50 segments each: a part with ten times as many would be another build.
        for number in range(count // 50):
            path = tmp_path / str(count) / "videos" / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            concatenate(path, pieces[50 * number : 50 * (number + 1)])
        flags = ["--source", str(tmp_path / str(count) / "videos"), "--output_dir", str(tmp_path / str(count) / "out")]
        peaks.append(peak_mib([*command(tmp_path)[:2], *flags, "--segment_s", "2", "--num_proc", "1"]))
        built = len(list((tmp_path / str(count) / "out" / "segments").iterdir()))
        assert built == count
        print(f"{count} segments: {peaks[-1]:.0f} MiB")
    assert peaks[1] <= 1.1 * peaks[0]

"""Videos that kill the process that decodes them, and a full disk: one outcome or one line, and nothing else is lost."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from sightsound.building import segments
from sightsound.building.segments import CutSettings, Video, cut_video
from tests.support.tiny import REPO, read_ledger
from tests.support.videos import MOVING, write_video


# Put first on the builder's path: its workers die as a bug in a decoder (by a file's name, each time) or the system's
# out-of-memory killer (once) would have it.
FAULTS = """
import os, signal
import av

_open = av.open

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

av.open = faulty_open
"""
OUTCOMES = {"a": "built", "kills": "decoder_crashed", "odd": "corrupt_media", "victim": "built", "z": "built"}


@pytest.mark.parametrize("num_proc", [pytest.param(2, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.storm)])
def test_a_worker_that_dies_costs_the_video_that_kills_it_and_no_other(num_proc, tmp_path):
    for i, name in enumerate(OUTCOMES):
        write_video(tmp_path / "videos" / f"{name}.mp4", i, [(2.0, True, MOVING)])
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'faults'}:{REPO}"}
    flags = ["--source", "videos", "--output_dir", "out", "--segment_s", "2", "--num_proc", str(num_proc)]
    command = [sys.executable, str(REPO / "dataset_builders" / "videos.py"), *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    videos = [entry for entry in read_ledger(tmp_path / "out") if entry["kind"] == "video"]
    assert {entry["id"]: entry["outcome"] for entry in videos} == OUTCOMES
    assert (tmp_path / "victim_was_killed").exists()
    assert {file.stem for file in (tmp_path / "out" / "segments").iterdir()} == {"a_000000", "victim_000000", "z_000000"}


def test_a_full_disk_is_not_taken_for_a_broken_video(tmp_path, monkeypatch):
    def full(path: Path, *_: object) -> None:
        raise av.error.OSError(errno.ENOSPC, "No space left on device")

    video = write_video(tmp_path / "a.mp4", 0)
    monkeypatch.setattr(segments, "write_segment", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        cut_video(Video(str(video), "a", "a", "", ""), CutSettings(10, 10, None), tmp_path / "part.parquet")
    assert raised.value.errno == errno.ENOSPC and not (tmp_path / "part.parquet").exists()

"""The measurements that the README cites hold on this machine; each script fails by itself beyond its bounds."""

import shutil
import subprocess
import sys

import pytest
from conftest import REPO


def measure(script: str, *flags: str) -> None:
    command = [sys.executable, str(REPO / "tests" / "benchmarks" / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to compare with")
def test_extraction_is_faster_than_a_call_of_ffmpeg_per_clip_and_sounds_alike(real_data):
    measure("extract_audio.py", "--media_dir", str(real_data / "video"), "--repeats", "3")


@pytest.mark.slow
def test_memory_and_time_per_row_do_not_grow_with_the_rows():
    measure("build_memory.py", "--num_rows", "100")

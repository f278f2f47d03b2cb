"""The one line that says what is wrong stands below what a launcher prints."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import REPO


FAIL = """
from sightsound.cli import InputError, run
def main():
    raise InputError("expected a folder")
run(main)
"""
BIN = Path(sys.executable).parent
CPU, DDP = (REPO / "accelerate_configs" / name for name in ("cpu.yaml", "ddp.yaml"))
LAUNCHES = {
    "as the README does": [BIN / "accelerate", "launch", "--config_file", CPU],
    "without flags": [BIN / "accelerate", "launch", "--cpu"],
    "quietly": [BIN / "accelerate", "launch", "--quiet", "--config_file", CPU],
    "by torchrun": [BIN / "torchrun", "--nproc_per_node", "1"],
}


@pytest.mark.parametrize(
    "how", [name if name == "as the README does" else pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHES]
)
def test_our_line_is_the_last_one(how, tmp_path):
    (tmp_path / "fail.py").write_text(FAIL)
    command = [*map(str, LAUNCHES[how]), str(tmp_path / "fail.py")]
    environment = {"PYTHONPATH": str(REPO), "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith("error: expected a folder\n"), done.stderr
    assert done.stderr.count("error: expected a folder") == (1 if how == "quietly" else 2), done.stderr

"""`make demo` without the set-up: start it, kill it, and read what it wrote."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support import tiny


SMOKE_ARMS = ["base", "sft-label", "sft-tts_agfv", "grpo-tts_agfv"]


def demo(output: Path, **environment: str) -> subprocess.Popen[str]:
    """`make demo` without the set-up, in a process group of its own."""
    paths = {"PATH": f"{tiny.REPO / '.venv' / 'bin'}:{os.environ['PATH']}", "OUTPUT": str(output)}
    env = {**tiny._environment(), **paths, **environment}
    command = ["bash", "recipes/miniature/run.sh"]
    return subprocess.Popen(
        command, cwd=tiny.REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_session(process: subprocess.Popen[str]) -> None:
    """SIGKILL to all that the demo started: its lanes have process groups of their own, but one session."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.getsid(int(folder.name)) == process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output[-4000:]
    return output


def read_report(output: Path) -> dict[str, dict[str, Any]]:
    return {entry["arm"]: entry for entry in json.loads((output / "report.json").read_text())}


def read_predictions(output: Path) -> dict[str, list[tuple[str, str, str]]]:
    import pyarrow.parquet as pq

    files = {arm: output / "seed-0" / "evaluation" / arm / "data" / "predictions-avqa.parquet" for arm in SMOKE_ARMS}
    return {arm: [(r["id"], r["control"], r["output"]) for r in pq.read_table(f).to_pylist()] for arm, f in files.items()}

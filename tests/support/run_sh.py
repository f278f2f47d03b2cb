"""Run the run.sh of a recipe with stubs in place of the programs that it calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.students import RECIPES


# What run.sh calls, in place of the programs: each writes down its arguments and succeeds. A server is ready once it has.
STUB = """#!{python}
import json, os, sys, time

def calls_with(program, port):
    lines = open(os.environ["CALLS"]).read().splitlines()
    return sum(line.startswith('["' + program) and port in line for line in lines)

if os.path.basename(sys.argv[0]) == "curl" and "/health" in sys.argv[-1]:
    port = sys.argv[-1].split(":")[-1].split("/")[0]
    while calls_with("vllm", port) <= calls_with("curl", port):
        time.sleep(0.01)
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if os.path.basename(sys.argv[0]) == "vllm":
    time.sleep(60)
"""


REAL_BUILDERS = """#!{python}
import os, sys

if sys.argv[1].startswith("dataset_builders/"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Variables that a run.sh reads: what is set where the tests run must not reach it.
FROM_USER = ("CHECKER", "STUDENT", "TEACHER", "ANSWERER", "TEXT_ANSWERER", "HELD_OUT", "MMAU", "MUSIC_AVQA")


def run_script(
    script: Path, folder: Path, *, real_builders: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a run.sh itself; the programs that it calls are stubs in `folder`, with `real_builders` all but those of datasets."""
    for name in ("python", "accelerate", "vllm", "curl"):
        (folder / name).write_text(STUB.format(python=sys.executable))
        (folder / name).chmod(0o755)
    if real_builders:
        (folder / "python").write_text(REAL_BUILDERS.format(python=sys.executable) + STUB.format(python=sys.executable))
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    given = {"ANNOTATIONS": "avqa", "VIDEOS": "videos", "OUTPUT": "out", "CALLS": str(folder / "calls"), "PATH": path}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FROM_USER)}
    command = {"env": {**kept, **given, **environment}, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(["bash", str(script)], check=False, **command)


def calls_of(folder: Path, script: Path = RECIPES / "run.sh", **environment: str) -> list[list[str]]:
    """Every command that run.sh runs, with its real arguments."""
    done = run_script(script, folder, **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]

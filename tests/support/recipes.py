"""Recipes, launched as a user does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import tiny


REPO = tiny.REPO


ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", "accelerate_configs/cpu.yaml"]


MINIATURE = REPO / "recipes" / "miniature"


def launch(recipe: str, **flags: Any) -> subprocess.CompletedProcess[str]:
    parts = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    command = [*ACCELERATE, f"recipes/{recipe}.py", *parts]
    return subprocess.run(command, cwd=REPO, env=tiny._environment(), capture_output=True, text=True, check=False)

"""
Repeat an error message below the traceback of a launcher.

When a process ends with an error, `accelerate launch` and `torchrun` print a traceback of their own, of up to a hundred lines,
below the one line that says what is wrong. So that line is printed again after the launcher has ended.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path


_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "deepspeed")
_MODULES = ("accelerate.", "torch.distributed.", "deepspeed.")
# Runs in a process of its own, since this one has to end first. A launcher that is a zombie counts as ended.
_REPEAT = """
import os, select, sys
launcher = os.pidfd_open(int(sys.argv[1]))
print("started", flush=True)
select.select([launcher], [], [], 60)
os.write(2, sys.argv[2].encode("utf-8", "surrogateescape"))
"""


def launcher() -> int | None:
    """Process id of the launcher that started this process and will print a traceback; None without one."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
    except OSError:  # no Linux
        return None
    own = list(itertools.takewhile(lambda part: not part.endswith(".py"), command))  # later flags belong to the script
    is_one = any(Path(part).name in _LAUNCHERS or part.startswith(_MODULES) for part in command[:4])
    return parent if is_one and not {"-q", "--quiet"} & set(own) else None


def repeat_below_traceback(line: str) -> None:
    """Write a line to stderr again after this process's launcher has ended; does nothing without a launcher."""
    parent = launcher()
    if parent is None or not hasattr(os, "pidfd_open"):
        return
    command = [sys.executable, "-I", "-S", "-c", _REPEAT, str(parent), line]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    if process.stdout is not None:
        process.stdout.readline()  # wait until it watches the launcher

"""
The last word to the user, where a launcher would have it.

`accelerate launch` and `torchrun` answer a process that ends with an error with a traceback of their own, of up to a hundred
lines, below the one line that says what is wrong. So the line is said once more, when the launcher has ended.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path


_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "deepspeed")
_MODULES = ("accelerate.", "torch.distributed.", "deepspeed.")
# A process of its own, since this one has to end first. A launcher that has ended and was not yet waited for counts as ended.
_REPEAT = """
import os, select, sys
launcher = os.pidfd_open(int(sys.argv[1]))
print("started", flush=True)
select.select([launcher], [], [], 60)
os.write(2, sys.argv[2].encode("utf-8", "surrogateescape"))
"""


def launcher() -> int | None:
    """The process id of the launcher that started this process and that will print a traceback; None where there is none."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
    except OSError:  # no Linux
        return None
    own = list(itertools.takewhile(lambda part: not part.endswith(".py"), command))  # further flags are the script's
    is_one = any(Path(part).name in _LAUNCHERS or part.startswith(_MODULES) for part in command[:4])
    return parent if is_one and not {"-q", "--quiet"} & set(own) else None


def repeat_below_traceback(line: str) -> None:
    """Write a line to stderr once more when the launcher of this process, if there is one, has written what it writes."""
    parent = launcher()
    if parent is None or not hasattr(os, "pidfd_open"):
        return
    command = [sys.executable, "-I", "-S", "-c", _REPEAT, str(parent), line]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    if process.stdout is not None:
        process.stdout.readline()  # it watches the launcher from now on

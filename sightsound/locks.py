"""
One writer per folder, also on file systems without flock.

Lustre without its mount option `flock`, and some NFS, refuse flock with ENOSYS, ENOLCK or EOPNOTSUPP. On such a
file system, a file that names the owner is the lock: only one process can create it, and that process renews it every few
seconds. A file that is no longer renewed comes from a killed run, and the next process takes it over. A process that was
suspended so long that it lost its file exits when it wakes, so two processes never write to one folder.
(`filelock.SoftFileLock` would not do: its file stays for ever when its owner is killed on another machine.)
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from sightsound.cli import InputError


LOCK_FILE, OWNER_FILE = ".lock", ".lock.owner"
# ENOSYS and ENOLCK: Lustre and NFS; EOPNOTSUPP and EINVAL: file systems in user space.
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
RENEW_EVERY_S = 5.0
ABANDONED_AFTER_S = 60.0  # several times the delay of a write on a busy network file system


class FolderLock:
    """
    Makes this process the only writer of a folder, until `release`.

    Raises:
        `InputError`: Another process writes to it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[str] | None = open(folder / LOCK_FILE, "w")  # noqa: SIM115 - stays open until `release`
        self._owner: _OwnerFile | None = None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise InputError(f"{folder} is being written by another process; wait for it or stop it") from error
            if error.errno not in NO_FLOCK:
                raise
            reason = f"flock does not work there ({error.strerror}), so {OWNER_FILE} in it keeps other processes out"
            print(f"warning: {folder}: {reason}", file=sys.stderr, flush=True)
            self._owner = _OwnerFile(folder / OWNER_FILE)

    def release(self, delete: bool = False) -> None:
        """
        Let other processes write to the folder.

        Args:
            delete (`bool`): Delete the lock's files.
        """
        if delete:
            (self._folder / LOCK_FILE).unlink(missing_ok=True)
        if self._owner is not None:
            self._owner.release()
        if self._file is not None:
            self._file.close()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of the folder."""
    with open(folder / LOCK_FILE, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two processes may look at the same time
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            return _is_renewed(folder / OWNER_FILE)
    return False


def _machine() -> str:
    """An id of this machine, this boot and this container. Two processes with the same id see the same process ids."""
    ids = []
    with suppress(OSError):
        ids = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(ids) or secrets.token_hex(8)


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None if it does not exist or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _read(path: Path) -> dict[str, str]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # deleted meanwhile, or cut off by a full disk
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_renewed(path: Path) -> bool:
    """Whether the file's owner is alive: by its process id on this machine, by the file's age elsewhere."""
    owner = _read(path)
    if owner.get("machine") == _machine():
        return owner.get("started") == _started(int(owner.get("pid", 0)))
    try:
        renewed_at = path.stat().st_mtime
    except FileNotFoundError:
        return False
    return _now_at(path.parent) - renewed_at < ABANDONED_AFTER_S


def _now_at(folder: Path) -> float:
    """The time on the clock of the file server, which also sets modification times."""
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


class _OwnerFile:
    """Names the process that may write; renewed until `release`."""

    def __init__(self, path: Path):
        self._path, self._released = path, threading.Event()
        pid = os.getpid()
        self._me = {"host": socket.gethostname(), "pid": str(pid), "id": secrets.token_hex(8)}
        self._me |= {"machine": _machine(), "started": _started(pid) or ""}
        if not self._make() and (_is_renewed(path) or not self._take_over()):
            owner = _read(path)
            writer = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown machine')}"
            raise InputError(
                f"{path.parent} is being written by {writer}; wait for it or stop it (if it was killed on another machine, "
                f"{path.name} expires {ABANDONED_AFTER_S:.0f} s after that)"
            )
        threading.Thread(target=self._renew, daemon=True).start()

    def _make(self) -> bool:
        """Create the file together with its content, unless it exists: a hard link is atomic also on NFS."""
        mine = self._path.with_name(f"{self._path.name}.{self._me['id']}")
        mine.write_text(json.dumps(self._me), encoding="utf-8")
        try:
            os.link(mine, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(self._path, "x", encoding="utf-8") as file:
                    file.write(json.dumps(self._me))
            except FileExistsError:
                return False
        finally:
            mine.unlink(missing_ok=True)
        return True

    def _take_over(self) -> bool:
        """Replace a file that is no longer renewed. If two processes try at once, the later one wins."""
        self._path.unlink(missing_ok=True)
        if not self._make():
            return False
        time.sleep(1.0)
        return self._is_mine()

    def _is_mine(self) -> bool:
        return _read(self._path).get("id") == self._me["id"]

    def _renew(self) -> None:
        while not self._released.wait(RENEW_EVERY_S):
            with suppress(OSError):  # a temporary failure of the file server
                owner = _read(self._path)
                if owner.get("id") == self._me["id"] or (not owner and self._make()):
                    os.utime(self._path)
                elif owner and not self._released.is_set():
                    self._end(owner)

    def _end(self, owner: dict[str, str]) -> None:
        reason = f"process {owner.get('pid')} on {owner.get('host')} took the folder over while this one was suspended"
        print(f"error: {self._path.parent}: {reason}; stopped", file=sys.stderr, flush=True)
        os._exit(2)

    def release(self) -> None:
        """Delete the file, so that another process can create it."""
        self._released.set()
        if self._is_mine():
            self._path.unlink(missing_ok=True)

"""
Crash-safe progress: what a folder was built from, and an append-only record of finished requests.

A stage may be killed at any moment. Its folder holds `stage.json` (the settings it was started with, and whether it is
complete) and, while it runs, `journal.jsonl` (one line per finished request). A rerun with the same settings continues; a
rerun of a complete stage does nothing; other settings are refused, because half of each would be neither.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .cli import InputError


STAGE_FILE = "stage.json"
JOURNAL_FILE = "journal.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a rerun after a kill, sees the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a finished folder in its place; whatever an interrupted run left there goes."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)


def fingerprint(source: str | Path | None) -> str | None:
    """
    What an input is, as a short string that changes when the input does.

    A folder that a stage wrote (or a folder inside one, such as `merged/`) is known by its `stage.json`, which in turn
    holds the fingerprints of its own inputs. Any other folder is known by its file names and sizes, a file by its bytes,
    a Hub id by its name.
    """
    if source is None:
        return None
    path = Path(source)
    for candidate in (path / STAGE_FILE, path.parent / STAGE_FILE):
        if path.is_dir() and candidate.is_file():
            return hashlib.sha256(candidate.read_bytes()).hexdigest()[:16]
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if path.is_dir():
        names = sorted(f"{file.relative_to(path)} {file.stat().st_size}" for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return str(source)


class Stage:
    """
    One output folder and the settings it is built with. Use as a context manager: the folder is locked meanwhile.

    Args:
        output_dir (`str`): Created when missing.
        settings (`dict[str, Any]`): JSON-serialisable; everything that changes the result, nothing that does not.

    Raises:
        `InputError`: The folder was started with other settings, or another process is writing to it.
    """

    def __init__(self, output_dir: str | Path, settings: dict[str, Any]):
        self.path = Path(output_dir)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._lock: IO[str] | None = None
        self.complete = False

    def __enter__(self) -> "Stage":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(f"{self.path} is being written by another process; wait for it or stop it") from error
        file = self.path / STAGE_FILE
        if file.is_file():
            recorded = json.loads(file.read_text(encoding="utf-8"))
            try:
                self._refuse_other_settings(recorded["settings"])
            except InputError:
                self._lock.close()
                raise
            self.complete = recorded["complete"]
        else:
            self._write(complete=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _refuse_other_settings(self, recorded: dict[str, Any]) -> None:
        names = sorted(recorded.keys() | self.settings.keys())
        changed = [name for name in names if recorded.get(name) != self.settings.get(name)]
        if changed:
            told = "; ".join(f"{n}: {recorded.get(n)!r} then, {self.settings.get(n)!r} now" for n in changed)
            raise InputError(f"{self.path} was started with other settings ({told}); delete it or choose another folder")

    def _write(self, complete: bool) -> None:
        text = json.dumps({"settings": self.settings, "complete": complete}, indent=2, sort_keys=True)
        write_atomically(self.path / STAGE_FILE, text + "\n")

    def finish(self) -> None:
        """Mark the folder as complete; the journal has served its purpose and goes."""
        self._write(complete=True)
        (self.path / JOURNAL_FILE).unlink(missing_ok=True)
        self.complete = True


class Journal:
    """
    Finished requests of one stage, `key -> value`, on disk as JSON lines.

    A kill can leave half a line at the end of the file: it is cut off when the journal is opened again, so that request
    is simply made once more. Every `append` is flushed to the disk before it returns.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.entries: dict[str, Any] = {}
        end = 0
        if self.path.is_file():
            with open(self.path, "rb") as file:
                for line in file:
                    try:
                        key, value = json.loads(line) if line.endswith(b"\n") else (None, None)
                    except ValueError:
                        break
                    if key is None:
                        break
                    self.entries[key] = value
                    end += len(line)
        self._file = open(self.path, "ab")  # noqa: SIM115 - stays open until `close`
        self._file.truncate(end)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def append(self, items: Iterable[tuple[str, Any]]) -> None:
        """Record finished requests; after this returns they survive a kill and a power cut."""
        for key, value in items:
            self._file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
            self.entries[key] = value
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

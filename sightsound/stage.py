"""
Crash-safe progress: what a folder was built from, and an append-only record of finished requests.

A stage may be killed at any moment. Its folder holds `stage.json` (the settings it was started with, and whether it is
complete) and, while it runs, `journal.jsonl` (one line per finished request). A rerun with the same settings continues; a
rerun of a complete stage does nothing; other settings are refused, because half of each would be neither.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.locks import FolderLock


STAGE_FILE = "stage.json"
JOURNAL_FILE = "journal.jsonl"
LEDGER_FILE = "ledger.parquet"
RANKS_FOLDER = ".ranks"
_RANK_LOG = re.compile(r"\.ranks/(?:\d+-of-\d+\.log|datatrove-of-\d+/.*)")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


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

    A folder that a stage wrote is known by its `stage.json`, which holds the fingerprints of its own inputs and a digest of
    what was written; a folder inside one, such as `model/`, by that and its name. Any other folder is known by its files'
    names, sizes and times of change (weights keep their size when they are trained again), a file by its bytes, a Hub id
    by its name.

    Raises:
        `InputError`: The stage that writes the folder has not finished: what is there now is a part.
    """
    if source is None:
        return None
    path = Path(source)
    if path.is_file():
        return _short_digest(path.read_bytes())
    if not path.is_dir():
        return str(source)
    for folder in (path, path.parent):
        if (folder / STAGE_FILE).is_file() and not is_complete(folder):
            raise InputError(f"{folder} is not complete; rerun the stage that writes it")
    for folder in (path, path.parent):
        if is_complete(folder):
            return _short_digest((folder / STAGE_FILE).read_bytes() + str(path.relative_to(folder)).encode())
    files = sorted(file for file in path.rglob("*") if file.is_file())
    told = [f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return _short_digest("\n".join(told).encode())


def _short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _are_fingerprints(*values: Any) -> bool:
    return all(isinstance(value, str) and _FINGERPRINT.fullmatch(value) for value in values)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds the finished output of a stage."""
    file = folder / STAGE_FILE
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8"))["complete"])


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What a stage's folder was started with; None where no stage was."""
    file = folder / STAGE_FILE
    return json.loads(file.read_text(encoding="utf-8"))["settings"] if file.is_file() else None


def changed_settings(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the settings that differ. Two ways of writing the path of the clips' folder do not."""
    return [name for name in sorted(recorded.keys() | now.keys()) if _resolved(name, recorded) != _resolved(name, now)]


def _resolved(name: str, settings: dict[str, Any]) -> Any:
    value = settings.get(name)
    return os.path.realpath(value) if name == "media_dir" and isinstance(value, str) else value


def _holds_an_answer(journal: Path) -> bool:
    """Whether any request has more than an outcome, which says why it has no answer."""
    return any(not (isinstance(value, dict) and "outcome" in value) for _, value, _ in read_journal(journal))


def _digest_of_results(folder: Path) -> str:
    """Of the data and weights in a folder; checkpoints to resume from, logs and cards are left out."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.suffix in (".parquet", ".safetensors") and not relative.parts[0].startswith("checkpoint-"):
            digest.update(str(relative).encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


class Stage:
    """
    One output folder and the settings it is built with. Use as a context manager: the folder is locked meanwhile.

    Args:
        output_dir (`str`): Created when missing.
        settings (`dict[str, Any]`): JSON-serialisable; everything that changes the result, nothing that does not.

    Raises:
        `InputError`: The folder was started with other settings, holds files of another origin, or another process is
            writing to it.
    """

    def __init__(self, output_dir: str | Path, settings: dict[str, Any]):
        self.path = Path(output_dir)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        if "media_dir" in self.settings:
            self.settings["media_dir"] = _resolved("media_dir", self.settings)
        self._lock: FolderLock | None = None
        self._new_folders: list[Path] = []
        self.complete = False

    def __enter__(self) -> "Stage":
        self._new_folders = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {self.path} cannot be made a folder ({error}); choose another") from error
        try:
            self._lock = FolderLock(self.path)
        except OSError as error:
            raise InputError(f"--output_dir {self.path} cannot be written to ({error}); choose another") from error
        file = self.path / STAGE_FILE
        recorded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if recorded is not None and recorded["settings"] is not None:
            try:
                self._refuse_other_settings(recorded["settings"])
            except InputError:
                self._lock.release()
                raise
            self.complete = recorded["complete"]
        elif recorded is not None:
            self._write(complete=False)
        else:
            foreign = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
            if foreign:
                self._lock.release()
                raise InputError(f"{self.path} holds files already (first: {foreign[0]}); choose a new or empty folder")
            self._write(complete=False)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._lock is not None:
            if isinstance(error, InputError) and not self._has_results():
                self._leave_nothing(str(error))  # the corrected command may use this folder
            self._lock.release()

    def _has_results(self) -> bool:
        """Whether there is anything that a rerun would go on with: no ledger, no logs of ranks, no journal without answers."""
        files = [file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file() and file.stat().st_size]
        left = [file for file in files if str(file) not in (STAGE_FILE, LEDGER_FILE) and file.name[0] != "."]
        left = [file for file in left if str(file) != JOURNAL_FILE or _holds_an_answer(self.path / file)]
        return self.complete or not all(_RANK_LOG.match(file.as_posix()) for file in left)

    def _leave_nothing(self, message: str) -> None:
        """Take away what entering made, which others would find and count as a stage that was started."""
        ranks, ledger = self.path / RANKS_FOLDER, self.path / LEDGER_FILE
        if any(str(file) in message for file in (ledger, *ranks.rglob("*.log")) if file.is_file()):
            (self.path / JOURNAL_FILE).unlink(missing_ok=True)
            self.forget_settings()  # the message sends its reader to that file
            return
        for file in (self.path / STAGE_FILE, self.path / JOURNAL_FILE, ledger):
            file.unlink(missing_ok=True)
        shutil.rmtree(ranks, ignore_errors=True)
        if self._lock is not None:
            self._lock.release(delete=True)
        with suppress(OSError):  # somebody else's files are there by now
            for folder in self._new_folders:
                folder.rmdir()

    def _refuse_other_settings(self, recorded: dict[str, Any]) -> None:
        names = sorted(recorded.keys() | self.settings.keys())
        changed = changed_settings(recorded, self.settings)
        if 2 * len(recorded.keys() & self.settings.keys()) < len(names):
            told = f"it was started with {', '.join(sorted(recorded)) or 'none'} as its settings"
            raise InputError(f"{self.path} holds something else, the output of another stage ({told}); choose another folder")
        if changed:
            told = "; ".join(f"{n}: {recorded.get(n)!r} then, {self.settings.get(n)!r} now" for n in changed)
            if any(_are_fingerprints(recorded.get(n), self.settings.get(n)) for n in changed):
                told += "; a folder that was copied or edited counts as another one"
            remedy = "delete it or choose" if recorded.keys() == self.settings.keys() else "choose"
            raise InputError(f"{self.path} was started with other settings ({told}); {remedy} another folder")

    def _write(self, complete: bool, **results: str) -> None:
        text = json.dumps({"settings": self.settings, "complete": complete, **results}, indent=2, sort_keys=True)
        write_atomically(self.path / STAGE_FILE, text + "\n")

    def forget_settings(self) -> None:
        """Let a rerun have other settings, for a stage that failed before it made anything worth keeping."""
        write_atomically(self.path / STAGE_FILE, json.dumps({"settings": None, "complete": False}) + "\n")

    def reopen(self) -> None:
        """Mark a complete folder as incomplete: there is more to make, under the same settings."""
        self._write(complete=False)
        self.complete = False

    def finish(self) -> None:
        """Mark the folder as complete, with a digest of what it holds; the journal has served its purpose and goes."""
        self._write(complete=True, results=_digest_of_results(self.path))
        (self.path / JOURNAL_FILE).unlink(missing_ok=True)
        self.complete = True


def read_journal(path: Path) -> Iterator[tuple[str, Any, int]]:
    """Key, value and where the line ends, in bytes, of what a journal holds: up to half a line that a kill left."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                key, value = json.loads(line) if line.endswith(b"\n") else (None, None)
            except ValueError:
                return
            if key is None:
                return
            end += len(line)
            yield key, value, end


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
            for key, value, end in read_journal(self.path):  # noqa: B007 - the last one counts
                self.entries[key] = value
        self._file = open(self.path, "ab")  # noqa: SIM115 - stays open until `close`
        self._file.truncate(end)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

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

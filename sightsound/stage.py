"""
Work that can be killed and run again: `Stage` guards an output folder, `Journal` records finished requests.

A stage may be killed at any moment. Its folder holds `stage.json` (its settings, and whether it is complete) and, while it
runs, `journal.jsonl` (one line per finished request). A rerun with the same settings continues. A rerun of a complete stage
does nothing. Other settings are refused: the folder would mix two results.
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
    """Write a small file so that readers see the old content or the new one, never a part, also after a kill."""
    # Hidden: what a kill leaves of the first one in a folder must not be taken for somebody else's file.
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def replace_folder(temporary: Path, final: Path) -> None:
    """Move a finished folder to its place. What an interrupted run left there is deleted."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)


def fingerprint(source: str | Path | None) -> str | None:
    """
    A short string that changes when the input changes.

    It is made from

    - a stage's folder: its `stage.json`, which holds the fingerprints of its inputs and a digest of its data and weights;
    - a folder inside one, such as `model/`: the same, and the folder's name;
    - any other folder: names, sizes and modification times of its files (retrained weights keep their size);
    - a file: its bytes;
    - a Hub id: the id itself.

    Raises:
        `InputError`: The stage that writes the folder has not finished.
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
    lines = [f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return _short_digest("\n".join(lines).encode())


def _short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _are_fingerprints(*values: Any) -> bool:
    return all(isinstance(value, str) and _FINGERPRINT.fullmatch(value) for value in values)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds the finished output of a stage."""
    file = folder / STAGE_FILE
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8"))["complete"])


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of a stage's folder; None if the folder is not the output of a stage."""
    file = folder / STAGE_FILE
    return json.loads(file.read_text(encoding="utf-8"))["settings"] if file.is_file() else None


def changed_settings(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the settings that differ. `media_dir` differs only if it is another folder."""
    return [name for name in sorted(recorded.keys() | now.keys()) if _resolved(name, recorded) != _resolved(name, now)]


def _resolved(name: str, settings: dict[str, Any]) -> Any:
    value = settings.get(name)
    return os.path.realpath(value) if name == "media_dir" and isinstance(value, str) else value


def _holds_an_answer(journal: Path) -> bool:
    """Whether any request was answered. A request without an answer has only an `outcome`, the reason."""
    return any(not (isinstance(value, dict) and "outcome" in value) for _, value, _ in read_journal(journal))


def _digest_of_results(folder: Path) -> str:
    """Digest of the data and weights in a folder, without checkpoints to resume from, logs and cards."""
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
    One output folder and its settings. Use as a context manager, which locks the folder.

    Args:
        output_dir (`str`): Created when missing.
        settings (`dict[str, Any]`): JSON-serialisable; exactly what changes the result.

    Raises:
        `InputError`: The folder was started with other settings, contains files that no stage wrote, or is locked by
            another process.
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
            raise InputError(f"--output_dir {self.path} cannot be created ({error}); choose another folder") from error
        try:
            self._lock = FolderLock(self.path)
        except OSError as error:
            raise InputError(f"--output_dir {self.path} cannot be written to ({error}); choose another folder") from error
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
                self._clean_up(str(error))  # so that the corrected command can use this folder
            self._lock.release()

    def _has_results(self) -> bool:
        """Whether a rerun can use anything here. A ledger, logs of ranks and a journal without answers do not count."""
        files = [file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file() and file.stat().st_size]
        left = [file for file in files if str(file) not in (STAGE_FILE, LEDGER_FILE) and file.name[0] != "."]
        left = [file for file in left if str(file) != JOURNAL_FILE or _holds_an_answer(self.path / file)]
        return self.complete or not all(_RANK_LOG.match(file.as_posix()) for file in left)

    def _clean_up(self, message: str) -> None:
        """Delete what entering created, except files that the error message names."""
        ranks, ledger = self.path / RANKS_FOLDER, self.path / LEDGER_FILE
        if any(str(file) in message for file in (ledger, *ranks.rglob("*.log")) if file.is_file()):
            (self.path / JOURNAL_FILE).unlink(missing_ok=True)
            self.forget_settings()
            return
        for file in (self.path / STAGE_FILE, self.path / JOURNAL_FILE, ledger):
            file.unlink(missing_ok=True)
        shutil.rmtree(ranks, ignore_errors=True)
        if self._lock is not None:
            self._lock.release(delete=True)
        with suppress(OSError):  # other files are there by now
            for folder in self._new_folders:
                folder.rmdir()

    def _refuse_other_settings(self, recorded: dict[str, Any]) -> None:
        names = sorted(recorded.keys() | self.settings.keys())
        changed = changed_settings(recorded, self.settings)
        if 2 * len(recorded.keys() & self.settings.keys()) < len(names):
            seen = ", ".join(sorted(recorded)) or "none"
            raise InputError(f"{self.path} holds the output of another stage (its settings: {seen}); choose another folder")
        if changed:
            changes = "; ".join(f"{n}: {recorded.get(n)!r} then, {self.settings.get(n)!r} now" for n in changed)
            if any(_are_fingerprints(recorded.get(n), self.settings.get(n)) for n in changed):
                changes += "; a folder that was copied or edited counts as another one"
            remedy = "delete it or choose" if recorded.keys() == self.settings.keys() else "choose"
            raise InputError(f"{self.path} was started with other settings ({changes}); {remedy} another folder")

    def _write(self, complete: bool, **results: str) -> None:
        text = json.dumps({"settings": self.settings, "complete": complete, **results}, indent=2, sort_keys=True)
        write_atomically(self.path / STAGE_FILE, text + "\n")

    def forget_settings(self) -> None:
        """Allow a rerun with other settings, for a stage that failed before it made anything worth keeping."""
        write_atomically(self.path / STAGE_FILE, json.dumps({"settings": None, "complete": False}) + "\n")

    def reopen(self) -> None:
        """Mark a complete folder as incomplete, to add to it under the same settings."""
        self._write(complete=False)
        self.complete = False

    def finish(self) -> None:
        """Mark the folder as complete, with a digest of its data and weights, and delete the journal."""
        self._write(complete=True, results=_digest_of_results(self.path))
        (self.path / JOURNAL_FILE).unlink(missing_ok=True)
        self.complete = True


def read_journal(path: Path) -> Iterator[tuple[str, Any, int]]:
    """Yield key, value and end offset (bytes) of each line of a journal. A half-written last line ends it."""
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

    A kill can leave half a line at the end of the file. The next opening cuts it off, and its request is made again.
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
        """Record finished requests. They are on the disk when this returns, and survive a kill or a power cut."""
        for key, value in items:
            self._file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
            self.entries[key] = value
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

"""
The takedown list of a dataset: videos that must not be in it, by their id or the sha256 of their file.

It is a text file, one entry a line; what follows a `#` is a comment. A dataset keeps its list as `takedown.txt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.sources import split_revision
from sightsound.hub.cards import TAKEDOWN_FILE
from sightsound.hub.files import read_published
from sightsound.stage import write_atomically


def read_takedown(file: str | Path) -> set[str]:
    """
    The entries of a list.

    Raises:
        `InputError`: It cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--takedown {file} cannot be read ({error}); give a text file with one video id or sha256 a line"
        ) from error
    return _entries(lines)


def _entries(lines: Iterable[str]) -> set[str]:
    return {entry for line in lines if (entry := line.partition("#")[0].strip())}


def published_in(repo_id: str) -> set[str]:
    """
    The list of a published dataset; empty where there is none. A new build for that repository must not bring them back.

    Raises:
        `InputError`: The Hub refuses or does not answer.
    """
    return _entries((read_published(repo_id, TAKEDOWN_FILE) or "").splitlines())


def listed_in(folder: Path, given: str | None) -> set[str]:
    """
    The list of a dataset, and that of `--takedown`.

    Args:
        folder (`Path`): Of the dataset.
        given (`str`, *optional*): A file.
    """
    kept = folder / TAKEDOWN_FILE
    before = read_takedown(kept) if kept.is_file() else set()
    return before | (read_takedown(given) if given is not None else set())


def keep_takedown(folder: Path, listed: set[str]) -> None:
    """Write the list into the dataset, where later builds find it."""
    if listed != listed_in(folder, None):
        write_atomically(folder / TAKEDOWN_FILE, "".join(f"{entry}\n" for entry in sorted(listed)))


def carry_takedown(source: str, folder: Path) -> None:
    """Keep the list of the dataset that another was built from, which has taken out what is listed."""
    name = split_revision(source)[0]
    listed = listed_in(Path(name), None) if Path(name).is_dir() else published_in(name)
    keep_takedown(folder, listed)


def is_listed(row: Mapping[str, Any], listed: set[str]) -> bool:
    """Whether the video of a row is on the list: by its id, the row's id, or the digest of either file."""
    return any(row.get(name) in listed for name in ("video_id", "id", "video_sha256", "media_sha256"))

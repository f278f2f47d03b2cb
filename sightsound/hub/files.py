"""
The files of a Hub dataset, one at a time on this disk: a dataset of videos is too large to be downloaded as a whole.

`hf_hub_download` begins a file again if its process was killed. Here a file grows block by block in a `.part`, and the next
run asks for what is missing: no block is downloaded twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from sightsound.cli import InputError
from sightsound.data.clips import sha256_of
from sightsound.hub.retries import retrying


T = TypeVar("T")

# Of one request. A kill loses at most one block; a video dataset's shard of 500 MB takes 30 requests.
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit; `sha256` is known of large files only."""

    path: str
    size: int
    sha256: str | None


def _asked(name: str, call: Callable[[], T]) -> T:
    """
    Ask the Hub for something of a dataset.

    Raises:
        `InputError`: It is gated, or the Hub refuses or does not answer.
    """
    from huggingface_hub.errors import GatedRepoError

    try:
        return retrying(call)
    except InputError as error:
        if isinstance(error.__cause__, GatedRepoError):
            remedy = "ask for access on its page, then set HF_TOKEN or run `hf auth login`; the same command continues"
            raise InputError(f"{name} is gated: {remedy} ({error})") from error
        raise InputError(f"{name} cannot be read: {error}; the same command continues") from error


def read_published(name: str, path: str) -> str | None:
    """
    A text file of a dataset, from `main`; None where there is no such dataset or file.

    Raises:
        `InputError`: The Hub refuses or does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    def read() -> str | None:
        try:
            return Path(hf_hub_download(name, path, repo_type="dataset")).read_text(encoding="utf-8")
        except (RepositoryNotFoundError, EntryNotFoundError):
            return None

    return _asked(name, read)


def list_files(name: str, commit: str) -> list[HubFile]:
    """
    All files of a dataset, sorted by path.

    Raises:
        `InputError`: It is gated, or the Hub refuses or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    def listed() -> list[HubFile]:
        entries = HfApi().list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
        files = (each for each in entries if isinstance(each, RepoFile))
        return [HubFile(each.path, each.size, each.lfs.sha256 if each.lfs else None) for each in files]

    return sorted(_asked(name, listed), key=lambda file: file.path)


def _open(name: str, commit: str, path: str) -> BinaryIO:
    from huggingface_hub import HfFileSystem

    # Without its cache, which reads ahead and keeps blocks in memory.
    return cast("BinaryIO", HfFileSystem().open(f"datasets/{name}@{commit}/{path}", "rb", cache_type="none"))


def read_schema(name: str, commit: str, path: str) -> Any:
    """
    The Arrow schema of a parquet file. Only the end of the file is downloaded.

    Raises:
        `InputError`: The dataset is gated, the Hub refuses or does not answer, or the file is not parquet.
    """
    import pyarrow.parquet as pq

    def read() -> Any:
        with _open(name, commit, path) as opened:
            return pq.read_schema(opened)

    return _asked(name, read)


def download(name: str, commit: str, file: HubFile, target: Path) -> None:
    """
    Download one file, or what is missing of it.

    Args:
        name (`str`): `ORG/NAME` of the dataset.
        commit (`str`): Its commit.
        file (`HubFile`): From `list_files`.
        target (`Path`): Complete when this returns; until then its bytes are in `target` with `.part` behind its name.

    Raises:
        `InputError`: The dataset is gated, the Hub refuses or does not answer, or what it sent has another sha256.
    """
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for _ in range(2):  # a second time if bytes were damaged on their way
        with open(part, "ab") as written:
            if written.tell() < file.size:
                source = _asked(name, partial(_open, name, commit, file.path))
                source.seek(written.tell())
                while written.tell() < file.size:
                    written.write(_asked(name, partial(source.read, BLOCK_BYTES)))
        if file.sha256 is None or sha256_of(str(part)) == file.sha256:
            os.replace(part, target)
            return
        part.unlink()
    seen = f"{file.path} of {name} arrived twice with other bytes than the Hub says"
    raise InputError(f"{seen}; check the network and run the same command again")

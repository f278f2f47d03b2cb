"""
Where videos come from: a folder, or a dataset of the Hub; and how the videos in one of its files are reached.

A source has files: videos, parquet files with videos in a column, or tar archives of them (WebDataset). A Hub dataset is read
file by file: each is downloaded when its turn comes, and deleted when its videos are done. A video has to lie on a disk to be
sought in, and a reader that is killed must not begin a file again, which the streaming of `datasets` would do.
"""

from __future__ import annotations

import fnmatch
import gzip
import json
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sightsound.building.video_columns import (
    AUTHOR_COLUMNS,
    ID_COLUMNS,
    LICENSE_COLUMNS,
    METADATA_FILES,
    NESTED,
    Columns,
    read_metadata,
    value_at,
)
from sightsound.cli import InputError
from sightsound.data.clips import VIDEO_EXTENSIONS, files_below
from sightsound.data.schema import CORRUPT_MEDIA, MISSING_MEDIA, RowError
from sightsound.data.sources import split_revision
from sightsound.hub.files import HubFile, download, list_files, read_schema


Row = dict[str, Any]

HUB = "hf://datasets/"
PARQUET = (".parquet",)
ARCHIVES = (".tar", ".tar.gz", ".tgz")
KINDS = (VIDEO_EXTENSIONS, PARQUET, ARCHIVES)
INFO_FILE = ".info.json"  # of yt-dlp --write-info-json, beside the video
READ_BYTES = 1 << 20
SPOOL_FILE = "spool.video"  # a video of an archive, until it is known what it is called


@dataclass(frozen=True)
class Entry:
    """
    A video in a file of a source.

    Args:
        index (`int`): Its number in the file.
        name (`str`): What it is called where the source gives no id.
        row (`dict`): What the source says of it.
        save (`Callable`, *optional*): Writes the video to a path; None where the file is the video. Raises `RowError`.
    """

    index: int
    name: str
    row: Row
    save: Callable[[Path], None] | None = None


@dataclass
class Source:
    """
    The files of a source.

    Args:
        name (`str`): A folder, or `hf://datasets/ORG/NAME@COMMIT`.
        files (`dict`): Path in the source -> its description on the Hub, or None in a folder; sorted, and all of one kind.
        columns (`Columns`): Where it says what.
        metadata (`dict`): Path of a video -> what a metadata file says of it.
    """

    name: str
    files: dict[str, HubFile | None]
    columns: Columns
    metadata: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stems = Counter(_stem(path) for path in self.files)
        # The name of a file where it is unique, else its path.
        self._names = {path: _stem(path) if stems[_stem(path)] == 1 else _flat(path) for path in self.files}

    def fetch(self, path: str, downloads: Path) -> Path:
        """Where a file lies on this disk, after a download if it is the Hub's."""
        file = self.files[path]
        if file is None:
            return Path(self.name, path)
        name, commit = split_revision(self.name.removeprefix(HUB))
        download(name, str(commit), file, target := downloads / _flat(path))
        return target

    def forget(self, path: str, downloads: Path) -> None:
        """Delete what `fetch` downloaded."""
        if self.is_download(path):
            (downloads / _flat(path)).unlink(missing_ok=True)

    def is_video(self, path: str) -> bool:
        """Whether a file is itself a video, and not a file of many."""
        return path.lower().endswith(VIDEO_EXTENSIONS)

    def is_download(self, path: str) -> bool:
        """Whether `fetch` makes a copy of a file, to be deleted when its videos are done."""
        return self.files[path] is not None

    def state(self, path: str) -> str:
        """What changes when a file does."""
        if (file := self.files[path]) is not None:
            return str(file)
        status = Path(self.name, path).stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def shown(self, path: str) -> str:
        """A file's name for people, without the folders above the source."""
        return f"{self.name}/{path}" if self.name.startswith(HUB) else path

    def entries(self, path: str, local: Path, folder: Path, is_done: Callable[[int], bool]) -> Iterator[Entry]:
        """
        The videos in a file.

        Args:
            path (`str`): Of the file in the source.
            local (`Path`): Where it lies.
            folder (`Path`): For files that are not needed for long.
            is_done (`Callable`): Whether the video of a number can be left out.
        """
        if path.lower().endswith(PARQUET):
            yield from _rows_of_parquet(local, self._names[path], self.columns, is_done)
        elif path.lower().endswith(ARCHIVES):
            yield from _samples_of_archive(local, folder / SPOOL_FILE, self.columns, is_done)
        elif not is_done(0):
            yield Entry(0, self._names[path], self.metadata.get(path) or _info_beside(local))

    def check_columns(self) -> None:
        """
        Raises:
            `InputError`: The first parquet file has no column with videos. Only its schema is read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        first, file = next(iter(self.files.items()))
        if not first.lower().endswith(PARQUET):
            return
        if file is not None:
            name, commit = split_revision(self.name.removeprefix(HUB))
            schema = read_schema(name, str(commit), first)
        else:
            try:
                schema = pq.read_schema(Path(self.name, first))
            except pa.ArrowInvalid as error:
                raise InputError(f"{first} of --source {self.name} is not parquet ({error}); take it away") from error
        video_column_of(schema, self.columns, self.shown(first))
        for flag in ("id_column", "license_column", "author_column"):
            if (path := getattr(self.columns, flag)) is not None:
                _check_path(schema, flag, path, self.shown(first))


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    extension = next((each for each in (*ARCHIVES, *PARQUET) if name.lower().endswith(each)), os.path.splitext(name)[1])
    return name[: len(name) - len(extension)]


def _flat(path: str) -> str:
    """A path as one name, without the dot of an extension."""
    return "-".join(path.replace("/", "__").rsplit(".", 1))


def _info_beside(video: Path) -> Row:
    file = video.with_name(f"{video.stem}{INFO_FILE}")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # most videos have none
        return {}
    return info if isinstance(info, dict) else {}


def open_folder(folder: str, columns: Columns) -> Source:
    """
    A folder of videos, searched at any depth; or of parquet files or archives, as they were downloaded.

    Raises:
        `InputError`: There is no such folder, or it holds nothing of that.
    """
    if not Path(folder).is_dir():
        raise InputError(f"--source {folder} is no folder; give a folder of videos, or {HUB}ORG/NAME")
    paths = [os.path.relpath(os.path.join(below, name), folder) for below, name in files_below(folder) if name[0] != "."]
    sizes = {path.replace(os.sep, "/"): os.path.getsize(Path(folder, path)) for path in paths if Path(folder, path).is_file()}
    if not sizes:
        raise InputError(f"--source {folder} is empty; give a folder of videos")
    chosen = _of_one_kind(sizes, columns, f"--source {folder}")
    metadata = [(path, Path(folder, path)) for path in sizes if path.rpartition("/")[2] in METADATA_FILES]
    return Source(folder, dict.fromkeys(chosen), columns, read_metadata(metadata))


def open_hub_dataset(source: str, columns: Columns, downloads: Path) -> Source:
    """
    A dataset of the Hub.

    Args:
        source (`str`): `ORG/NAME@COMMIT`.
        columns (`Columns`): Where it says what.
        downloads (`Path`): Where its metadata files go.

    Raises:
        `InputError`: It cannot be read, or holds no videos.
    """
    name, commit = split_revision(source)
    files = {file.path: file for file in list_files(name, str(commit))}
    chosen = _of_one_kind({path: file.size for path, file in files.items()}, columns, f"{HUB}{name}")
    metadata = []
    if chosen[0].lower().endswith(VIDEO_EXTENSIONS):
        for path in files:
            if path.rpartition("/")[2] in METADATA_FILES:
                download(name, str(commit), files[path], target := downloads / _flat(path))
                metadata.append((path, target))
    return Source(f"{HUB}{source}", {path: files[path] for path in chosen}, columns, read_metadata(metadata))


def _of_one_kind(sizes: dict[str, int], columns: Columns, named: str) -> list[str]:
    """The files to read: those of `--files`, and of the kind (videos, parquet, archives) that has the most bytes."""
    matching = [path for path in sorted(sizes) if columns.files is None or fnmatch.fnmatch(path, columns.files)]
    by_kind = [[path for path in matching if path.lower().endswith(kind)] for kind in KINDS]
    chosen = max(by_kind, key=lambda paths: sum(sizes[path] for path in paths))
    if not chosen:
        where = f" that match --files {columns.files}" if columns.files else ""
        expected = "videos, parquet files with videos in a column, or tar archives of videos"
        raise InputError(f"{named} holds no videos{where}: expected {expected}, found {len(sizes)} files (first: {min(sizes)})")
    return chosen


def video_column_of(schema: Any, columns: Columns, file: str) -> str:
    """
    The column of a parquet file that holds videos.

    Raises:
        `InputError`: There is none, or several may be.
    """
    import pyarrow as pa
    from datasets import Audio, Features, Image

    if columns.video_column is not None:
        if columns.video_column.split(".")[0] not in schema.names:
            raise InputError(
                f"{file} has no column {columns.video_column}: it has {', '.join(schema.names)}; give --video_column"
            )
        return columns.video_column
    features = Features.from_arrow_schema(schema)

    def may_hold_video(each: Any) -> bool:
        held = each.type
        if pa.types.is_struct(held) and held.get_field_index("bytes") >= 0:
            held = held.field("bytes").type
        is_binary = pa.types.is_binary(held) or pa.types.is_large_binary(held)
        return is_binary and not isinstance(features[each.name], Audio | Image)

    found = [each.name for each in schema if may_hold_video(each)]
    if len(found) == 1:
        return str(found[0])
    seen = (
        f"{len(found)} columns may ({', '.join(found)})" if found else f"none of its columns does ({', '.join(schema.names)})"
    )
    raise InputError(f"{file}: expected a column that holds videos as bytes, but {seen}; give --video_column")


def _check_path(schema: Any, flag: str, path: str, file: str) -> None:
    """Raise `InputError` where a parquet file has no such column, or its objects no such field."""
    import pyarrow as pa

    fields = {each.name: each.type for each in schema}
    for name in path.split("."):
        if name not in fields:
            raise InputError(f"--{flag} {path}: {file} has no {name} there, but {', '.join(fields)}; give one of these")
        held = fields[name]
        if not pa.types.is_struct(held):  # a value, or JSON whose names no schema knows
            return
        fields = {held.field(i).name: held.field(i).type for i in range(held.num_fields)}


def _rows_of_parquet(local: Path, name: str, columns: Columns, is_done: Callable[[int], bool]) -> Iterator[Entry]:
    """The rows, one in memory at a time beside the row group that is being read."""
    import pyarrow.parquet as pq

    # Buffered, else a whole column of a row group is read at once.
    with pq.ParquetFile(local, buffer_size=READ_BYTES, pre_buffer=False) as content:
        video_column = video_column_of(content.schema_arrow, columns, local.name)
        named = (columns.id_column, columns.license_column, columns.author_column)
        wanted = {*ID_COLUMNS, *LICENSE_COLUMNS, *AUTHOR_COLUMNS, NESTED, video_column.split(".")[0]}
        wanted |= {path.split(".")[0] for path in named if path}
        kept = [each for each in content.schema_arrow.names if each in wanted]
        index = 0
        for group in range(content.num_row_groups):
            num_rows = content.metadata.row_group(group).num_rows
            if all(is_done(index + i) for i in range(num_rows)):
                index += num_rows
                continue
            for batch in content.iter_batches(batch_size=1, row_groups=[group], columns=kept, use_threads=False):
                if not is_done(index):
                    [row] = batch.to_pylist()
                    video = value_at(row, video_column)
                    path = video.get("path") if isinstance(video, dict) else None
                    own_name = Path(path).name if path else f"{name}-{index:06d}"
                    yield Entry(index, own_name, row, partial(_save_cell, video))
                index += 1


def _save_cell(video: Any, target: Path) -> None:
    content = video.get("bytes") if isinstance(video, dict) else video
    if not isinstance(content, bytes) or not content:
        held = f"the path {video['path']} and no bytes" if isinstance(video, dict) and video.get("path") else "nothing"
        raise RowError(MISSING_MEDIA, f"the video column holds {held}")
    target.write_bytes(content)


def _samples_of_archive(local: Path, spool: Path, columns: Columns, is_done: Callable[[int], bool]) -> Iterator[Entry]:
    """
    The samples of a WebDataset: neighbouring members with the same name up to its first dot.

    An archive is read once, forward: to go back in a `.tar.gz` would unpack it again. So a video is written to the disk when
    it comes, before the metadata behind it is known.
    """
    key, row, has_video, index = None, Row(), False, 0

    def entry() -> Iterator[Entry]:
        if key is not None and has_video and not is_done(index):
            yield Entry(index, key.rpartition("/")[2], row, partial(_move, spool))

    try:
        with tarfile.open(local, "r:*") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else it remembers all
                folder, _, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if not member.isfile() or not stem:
                    continue
                if f"{folder}/{stem}" != key:
                    yield from entry()
                    index += has_video
                    key, row, has_video = f"{folder}/{stem}", Row(), False
                is_video = f".{extension.lower()}".endswith(VIDEO_EXTENSIONS)
                if extension == columns.video_column or (columns.video_column is None and is_video):
                    has_video = True
                    if not is_done(index):
                        with open(spool, "wb") as target:
                            shutil.copyfileobj(archive.extractfile(member), target, READ_BYTES)  # type: ignore[arg-type]
                elif extension.lower().endswith(("json", "txt")):
                    text = archive.extractfile(member).read()  # type: ignore[union-attr]
                    row[extension.lower()] = text.decode(errors="replace")
            yield from entry()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Entry(index, local.name, {}, partial(_refuse, f"the archive cannot be read to its end: {error}"))


def _refuse(reason: str, target: Path) -> None:
    raise RowError(CORRUPT_MEDIA, reason)


def _move(spool: Path, target: Path) -> None:
    os.replace(spool, target)

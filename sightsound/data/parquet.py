"""Read, write and join the parquet files of a stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.data.schema import SAMPLING_RATE, UNKNOWN, ledger_features
from sightsound.data.sources import COMMIT, split_revision
from sightsound.locks import NO_FLOCK


if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import Table

ROW_GROUP_ROWS = 100  # the Hub's viewer reads a whole row group to show a page
# Number of audio rows held as Python objects at once. The other rows of a row group stay as Arrow tables, which saves one copy.
AUDIO_CHUNK_ROWS = 10
MAX_DETAIL_CHARACTERS = 300  # of a ledger entry; enough for a message and a value
# Columns that older files and annotations lack, and what is written for them in rows from there.
LATER_COLUMNS: dict[str, Any] = {
    "sampling": None,
    "checker_sampling": None,
    "rewriter": None,
    "rewriter_revision": None,
    "audio_contribution": UNKNOWN,
    "text_only_correct": None,
    "silent_correct": None,
    "blind_tries": None,
}


def write_parquet(rows: Iterable[dict[str, Any]], features: Features, path: Path) -> None:
    """
    Write rows atomically, with the features in the file's metadata and at most one row group in memory.

    Audio is stored as it is given, `{"bytes", "path"}`. `Dataset.to_parquet` would store local paths, and encoding through the
    feature would need torchcodec and a system ffmpeg.

    Args:
        rows (`Iterable[dict]`): Read as they are written, so a generator's rows are not in memory together.
        features (`Features`): Each row has a key for each feature except `LATER_COLUMNS`; further keys are left out.
        path (`Path`): Its folder is created when missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio

    chunk_rows = AUDIO_CHUNK_ROWS if any(isinstance(feature, Audio) for feature in features.values()) else ROW_GROUP_ROWS
    remaining = iter(rows)
    with replaced_when_complete(path) as temporary, pq.ParquetWriter(temporary, _to_table([], features).schema) as writer:
        # `datasets` cannot read an empty row group, but it can read a file without row groups.
        while group := list(_tables(islice(remaining, ROW_GROUP_ROWS), features, chunk_rows)):
            writer.write_table(pa.concat_tables(group), row_group_size=ROW_GROUP_ROWS)
            group.clear()  # else it stays in memory until the next one is complete


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """A path to write to. What is there at the end of the block gets the name `path`; after an error it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # on the disk before its name says that it is complete
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tables(rows: Iterator[dict[str, Any]], features: Features, chunk_rows: int) -> Iterator[Table]:
    while chunk := list(islice(rows, chunk_rows)):
        yield _to_table(chunk, features)


def _to_table(rows: list[dict[str, Any]], features: Features) -> Table:
    from datasets import Audio, Dataset, Value

    plain = features.copy()
    audio = [name for name, feature in features.items() if isinstance(feature, Audio)]
    for name in audio:
        plain[name] = {"bytes": Value("binary"), "path": Value("string")}
    dataset = Dataset.from_dict({name: [(LATER_COLUMNS | row)[name] for row in rows] for name in features}, features=plain)
    for name in audio:
        dataset = dataset.cast_column(name, Audio(sampling_rate=SAMPLING_RATE, decode=False))
    return dataset.data.table.replace_schema_metadata(features.arrow_schema.metadata)


def storable(text: str) -> str:
    """Text for a ledger. File names and annotations may be invalid UTF-8 and very long."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain if len(plain) <= MAX_DETAIL_CHARACTERS else f"{plain[:MAX_DETAIL_CHARACTERS]}..."


def write_ledger(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write `ledger.parquet`: `id`, `outcome` and `detail` of every input row."""
    write_parquet(({"detail": None, **row} for row in rows), ledger_features(), path)


def open_dataset(source: str, split: str, config: str | None = None) -> Dataset:
    """
    Open a split of a local dataset folder or of a Hub dataset. Audio stays encoded; `audio.decode_audio` decodes it.

    A local folder needs a card by `hub.cards.write_dataset_card`, which keeps `datasets` from reading an outdated cache.

    Raises:
        `InputError`: There is no such dataset, config or split.
    """
    from datasets import Audio, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    disable_progress_bars()
    name, revision = split_revision(source)
    try:
        options = {"revision": revision} if revision else {}
        dataset = load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, DatasetsError, ArrowException, NotImplementedError) as error:
        raise InputError(f"cannot open split '{split}' of {source} ({_reason(error)}); {_remedy(error)}") from error
    if COMMIT.fullmatch(revision or "") and (found := commit_of(dataset)) not in (None, revision):
        # Offline, or with a refused token, `datasets` silently takes any commit that is in its cache.
        raise InputError(f"{source} cannot be read: the cache has commit {found} only; unset HF_HUB_OFFLINE, check HF_TOKEN")
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(name, Audio(sampling_rate=SAMPLING_RATE, decode=False))
            if not Path(source).exists():
                _check_paths(dataset, name, source)
    return dataset


def _check_paths(dataset: Dataset, column: str, source: str) -> None:
    """Raise `InputError` when a published dataset names audio files outside of its download: it could name any file here."""
    import pyarrow.compute as pc
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    cells = dataset.data.column(column)
    paths = pc.struct_field(cells, "path").filter(pc.is_null(pc.struct_field(cells, "bytes")))
    downloads = [Path(folder).resolve() for folder in (HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)]
    for path in paths.to_pylist():
        if path and not any(Path(path).resolve().is_relative_to(folder) for folder in downloads):
            raise InputError(
                f"{source} holds no audio in '{column}' but the path {path}, which is no file of that dataset; ask its author "
                "to publish it with `push_to_hub`, which embeds the audio"
            )


def _reason(error: BaseException) -> str:
    """The first line of the underlying error, which `datasets` wraps."""
    root = error.__cause__ if type(error).__name__.startswith("DatasetGeneration") and error.__cause__ else error
    return next(iter(str(root).splitlines()), type(root).__name__)


def _remedy(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in NO_FLOCK:
        return "its cache is on a file system without flock: set HF_HOME to a folder on a local disk"
    return "expected a dataset folder or a Hub dataset id, and one of its splits"


def commit_of(rows: Dataset) -> str | None:
    """The commit of a dataset from the Hub. `datasets` caches each commit in a folder of that name."""
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if COMMIT.fullmatch(name)), None)


def check_same_clips(rows: Iterable[dict[str, Any]], dataset: Dataset, source: str) -> None:
    """
    Check that traces were written about the clips of this dataset. Ids alone are not enough: datasets can share them.

    Args:
        rows (`Iterable[dict]`): With `id` and `media_sha256`.
        dataset (`Dataset`): An avqa-audio split.
        source (`str`): Its name, for the message.

    Raises:
        `InputError`: A row's id is not in the dataset, or belongs to another clip there.
    """
    known = dict(zip(dataset["id"], dataset["media_sha256"], strict=True))
    other = [row["id"] for row in rows if known.get(row["id"]) != row["media_sha256"]]
    if other:
        raise InputError(
            f"{len(other)} traced questions (first: {other[0]}) are missing in {source} or are about another clip; give the "
            "dataset and split that were traced"
        )


class AudioById:
    """
    The audio column of an avqa-audio split by row id. A cell is read when it is looked up.

    Args:
        dataset (`Dataset`): Opened with `open_dataset`.
    """

    def __init__(self, dataset: Dataset):
        self._audio = dataset.select_columns(["audio"])
        self._position = {row_id: i for i, row_id in enumerate(dataset["id"])}

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._position

    def __getitem__(self, row_id: str) -> dict[str, Any]:
        return self._audio[self._position[row_id]]["audio"]


def data_files(source: str, config: str | None = None) -> dict[str, list[str]]:
    """
    The files that `load_dataset` would read, here or on the Hub, by split. Nothing is downloaded or copied.

    Args:
        source (`str`): A folder, a Hub id, or `ORG/NAME@REVISION`.
        config (`str`, *optional*): By default the dataset's own default.

    Raises:
        `OSError`, `ValueError`: There is no such dataset or config.
    """
    from datasets import load_dataset_builder

    name, revision = split_revision(source)
    files = load_dataset_builder(name, config, revision=revision).config.data_files or {}
    return {str(split): list(paths) for split, paths in files.items()}


def parquet_schema(file: str | Path) -> Any:
    """The Arrow schema of a parquet file, here or on the Hub."""
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(str(file), "rb") as opened:
        return pq.read_schema(opened)


def read_tables(file: str | Path, columns: Sequence[str] | None = None) -> Iterator[Table]:
    """The row groups of a parquet file, here or on the Hub, one in memory at a time."""
    import fsspec
    import pyarrow.parquet as pq

    # Arrow's threads call the interpreter for an fsspec file, and abort a process that ends meanwhile. So local files are
    # opened without fsspec, and files on the Hub are read without threads.
    source = fsspec.open(str(file), "rb") if "://" in str(file) else nullcontext(file)
    with source as opened, pq.ParquetFile(opened) as content:
        # Not `iter_batches`: it keeps what it has read in memory until the file is closed.
        for group in range(content.num_row_groups):
            yield content.read_row_group(group, columns=columns, use_threads=False)


def read_parquet(files: Iterable[str | Path], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of parquet files, here or on the Hub, one row group in memory at a time."""
    for file in files:
        for table in read_tables(file, columns):
            for batch in table.to_batches(ROW_GROUP_ROWS):
                yield from batch.to_pylist()

"""The questions of a benchmark: from a built dataset, or from the official annotation file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from sightsound.benchmarks import benchmark_in, benchmark_names, get_benchmark
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.annotations import Row, RowError
from sightsound.data.clips import sha256_of
from sightsound.data.sources import split_revision
from sightsound.hub.inputs import front_matter_of
from sightsound.stage import fingerprint


if TYPE_CHECKING:
    from datasets import Dataset


def load_benchmark(name: str, dataset: str, split: str | None, limit: int | None) -> tuple[Dataset, str]:
    """
    Rows of a benchmark with their audio, and their revision: a folder's fingerprint, or a Hub dataset's commit.

    Args:
        name (`str`): The benchmark.
        dataset (`str`): Folder, or Hub id.
        split (`str`, *optional*): Default: the benchmark's.
        limit (`int`, *optional*): Only the first rows.

    Raises:
        `InputError`: There is no such benchmark, or the dataset cannot be opened or is another benchmark's.
    """
    benchmark = get_benchmark(name)
    rows = parquet.open_dataset(dataset, split or benchmark.split)
    commit = parquet.commit_of(rows)
    card_of = dataset if commit is None else f"{split_revision(dataset)[0]}@{commit}"
    found = _benchmark_by_card(card_of) or _benchmark_by_columns(name, rows.column_names)
    if found != name:
        raise InputError(f"{dataset} is a dataset of {found}, not of {name}; give --benchmark {found}, or {name}'s own")
    later = schema.CONTRIBUTION_COLUMNS  # which datasets of earlier versions lack
    missing = [column for column in benchmark.features() if column not in (*rows.column_names, *later)]
    if missing:
        raise InputError(
            f"{dataset} is no dataset of {name}: it lacks {', '.join(missing)}; build one by dataset_builders/, or give another"
        )
    selected = rows.select(range(min(len(rows), limit or len(rows))))
    if benchmark.averages_in_paper and not any(selected["in_paper"]):
        raise InputError(f"none of the first {len(selected)} questions counts in {name}'s average; give a larger --limit")
    return selected, commit or fingerprint(dataset) or dataset


def _benchmark_by_card(source: str) -> str | None:
    """The benchmark that a dataset says it is; None where it does not say, or where its rows are cached and its card is not."""
    try:
        return benchmark_in(front_matter_of(source))
    except InputError:
        return None


def _benchmark_by_columns(expected: str, columns: Collection[str]) -> str:
    """
    The benchmark of a dataset that does not say it: of one built before datasets did, or of somebody's own.

    All benchmarks have the columns of avqa-audio. A dataset that has all further columns of another benchmark is that one's;
    any other dataset is taken for the expected benchmark.
    """
    known = set(get_benchmark(expected).features())
    further = {name: set(get_benchmark(name).features()) - known for name in benchmark_names()}
    return next((name for name, own in further.items() if own and own <= set(columns)), expected)


def part_asked(asked: int, questions: int | None, are_pinned: bool | None) -> str | None:
    """
    The part of a benchmark that a figure is about, for a note beside it: `"20 of 1,000 questions"`.

    Args:
        asked (`int`): Number of questions that were asked.
        questions (`int`, *optional*): Number of questions of the benchmark, `PinnedFile.questions`.
        are_pinned (`bool`, *optional*): Whether they are the pinned ones, `PinnedFile.asks`.

    Returns:
        `str` or `None`: None where all were asked, or where the benchmark's own number is unknown.
    """
    if questions not in (None, asked):
        return f"{asked:,} of {questions:,} questions"
    return "other questions than the pinned ones" if are_pinned is False else None


def read_annotations(name: str, path: str, allow_unpinned: bool) -> tuple[list[Row], str]:
    """
    Rows of a benchmark without their audio, from the official annotation file, and the file's sha256 as their revision.

    Raises:
        `InputError`: As for `Benchmark.read`, or a row cannot be used.
    """
    benchmark = get_benchmark(name)
    annotations, _ = benchmark.read(path, allow_unpinned)
    rows: dict[str, Row] = {}
    for number, annotation in enumerate(annotations):
        try:
            row = benchmark.to_row(annotation)
        except RowError as error:
            raise InputError(f"{path}, annotation {number}: {error}; scoring leaves no question out") from error
        if row["id"] in rows:
            raise InputError(f"{path}, annotation {number}: id {row['id']} occurs twice")
        rows[row["id"]] = row
    return list(rows.values()), f"sha256:{sha256_of(path)}"


def load_questions(
    benchmark: str, annotations: str | None, dataset: str | None, split: str | None, allow_unpinned: bool
) -> tuple[list[Row], str, str]:
    """
    Rows of a benchmark without their audio, their revision, and their split (of an annotation file, its name).

    Raises:
        `InputError`: Not exactly one of `annotations` and `dataset` is given, or it cannot be used.
    """
    if annotations is not None and dataset is None:
        return *read_annotations(benchmark, annotations, allow_unpinned), Path(annotations).name
    if dataset is not None and annotations is None:
        rows, revision = load_benchmark(benchmark, dataset, split, limit=None)
        return rows.remove_columns("audio").to_list(), revision, split or get_benchmark(benchmark).split
    raise InputError("give the questions: either --annotations, the official file, or --dataset, built from it")

"""
Benchmarks: which rows, in which revision, under which prompt, and how they are broken down.

Official annotations are read by the row functions in `sightsound/benchmarks/`; each file there shows one real annotation. The
row that both they and a built dataset hold, AVQA's val_qa.json id 1139 (a dataset has `audio`, `duration_s` and `media_sha256`
besides):

    {"id": "1139", "video_id": "06GyG4-wONQ", "start_s": 6.0,
     "question": "How many animals are there in the audio?", "video_question": "How many animals are there in the video?",
     "choices": ["3", "One", "4", "2"], "answer": 3, "answer_text": "2", "question_relation": "Both",
     "question_type": "Which"}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.benchmarks import avqa, mmau, music_avqa
from sightsound.benchmarks.pinned import PinnedFile
from sightsound.cli import InputError, read_json
from sightsound.data import parquet, schema
from sightsound.data.annotations import RowError
from sightsound.data.clips import sha256_of, video_name
from sightsound.stage import fingerprint


if TYPE_CHECKING:
    from datasets import Dataset, Features

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """
    What sets one benchmark apart from the others.

    Args:
        split (`str`): Of its built dataset.
        features (`Callable`): Columns of that dataset, from `schema`.
        pinned (`PinnedFile`): The official annotation file.
        to_row (`Callable`): An official annotation -> a row. Raises `RowError`.
        id_key (`str`): Where an annotation keeps its id.
        groups (`dict`): Breakdowns: name of the figure -> column of a row.
        counted (`str` or `None`): Column that marks the rows of the paper's average; None when all are.
        official (`str` or `None`): The official protocol's metric, a folder of `evaluation/metrics/`.
        clip_name (`Callable` or `None`): A row -> the name of its video; None where there are only sounds.
    """

    split: str
    features: Callable[[], Features]
    pinned: PinnedFile
    to_row: Callable[[Any], Row]
    id_key: str
    groups: dict[str, str]
    counted: str | None = None
    official: str | None = None
    clip_name: Callable[[Row], str] | None = None

    def counts(self, row: Row) -> bool:
        """Whether a question, or a prediction on it, is in the paper's average."""
        return self.counted is None or bool(row[self.counted])


GROUPS = {"by_type": "question_type", "by_relation": "question_relation"}
BENCHMARKS = {
    "avqa": Benchmark(
        "validation", schema.avqa_audio_features, avqa.PINNED, avqa.to_row, avqa.ID_KEY, GROUPS, clip_name=video_name
    ),
    # by_type: sound, speech, music, as the paper's Table 2; by_relation: information extraction or reasoning.
    "mmau": Benchmark(
        "test",
        schema.mmau_features,
        mmau.PINNED,
        mmau.to_row,
        mmau.ID_KEY,
        GROUPS | {"by_difficulty": "difficulty", "by_sub_category": "sub_category"},
        official="mmau_official",
    ),
    # by_type: the paper's four, and Location, which its average leaves out; by_relation: Audio, Visual, Audio-Visual.
    "music_avqa": Benchmark(
        "test",
        schema.music_avqa_features,
        music_avqa.PINNED,
        music_avqa.to_row,
        music_avqa.ID_KEY,
        GROUPS,
        counted="in_paper",
        official="music_avqa",
        clip_name=itemgetter("video_id"),  # some have the form of a YouTube id, but all are whole videos
    ),
}


def get_benchmark(name: str) -> Benchmark:
    """
    A benchmark by its name.

    Raises:
        `InputError`: There is none of that name.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark '{name}'; expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def load_benchmark(name: str, dataset: str, split: str | None, limit: int | None) -> tuple[Dataset, str]:
    """
    Rows of a benchmark with their sound, and the revision they come from: a folder's fingerprint, a Hub dataset's commit.

    Raises:
        `InputError`: Unknown benchmark, its dataset cannot be opened, or is another benchmark's.
    """
    benchmark = get_benchmark(name)
    rows = parquet.open_dataset(dataset, split or benchmark.split)
    columns = set(rows.column_names)
    # All benchmarks have the columns of avqa-audio; what tells them apart is which further ones there are.
    for other, its in BENCHMARKS.items():
        further = set(its.features()) - set(benchmark.features())
        if further and further <= columns:
            raise InputError(f"{dataset} is a dataset of {other}, not of {name}; give --benchmark {other}, or {name}'s own")
    missing = [column for column in benchmark.features() if column not in columns]
    if missing:
        raise InputError(
            f"{dataset} is no dataset of {name}: it lacks {', '.join(missing)}; build one by dataset_builders/, or give another"
        )
    selected = rows.select(range(min(len(rows), limit or len(rows))))
    if benchmark.counted and not any(selected[benchmark.counted]):
        raise InputError(f"none of the first {len(selected)} questions counts in {name}'s average; give a larger --limit")
    return selected, parquet.commit_of(rows) or fingerprint(dataset) or dataset


def part_asked(asked: int, questions: int | None, are_pinned: bool | None) -> str | None:
    """
    What a figure has to say that is not about all questions of a benchmark, or about others: `"20 of 1,000 questions"`.

    Args:
        asked (`int`): How many questions were.
        questions (`int` or `None`): How many the benchmark has, `PinnedFile.questions`.
        are_pinned (`bool` or `None`): Whether they are those, `PinnedFile.asks`.

    Returns:
        `str` or `None`: None when all were asked, or when what there is is not known.
    """
    if questions not in (None, asked):
        return f"{asked:,} of {questions:,} questions"
    return "other questions than the pinned ones" if are_pinned is False else None


def read_annotations(name: str, path: str, allow_unpinned: bool) -> tuple[list[Row], str]:
    """
    Rows of a benchmark without their sound, from the official annotation file, and which file that was.

    Raises:
        `InputError`: It is not the pinned file and that was not allowed, or a row cannot be used.
    """
    benchmark = get_benchmark(name)
    annotations = read_json(path)
    if not isinstance(annotations, list) or not annotations:
        raise InputError(f"{path}: expected a list of annotations as in {benchmark.pinned.source}")
    benchmark.pinned.check(path, annotations, allow_unpinned)
    rows: dict[str, Row] = {}
    for number, annotation in enumerate(annotations):
        try:
            row = benchmark.to_row(annotation)
        except RowError as error:
            raise InputError(f"{path}, annotation {number}: {error}; scoring leaves no question out") from error
        if row["id"] in rows:
            raise InputError(f"{path}, annotation {number}: id {row['id']} stands there twice")
        rows[row["id"]] = row
    return list(rows.values()), f"sha256:{sha256_of(path)}"


def load_questions(
    benchmark: str, annotations: str | None, dataset: str | None, split: str | None, allow_unpinned: bool
) -> tuple[list[Row], str, str]:
    """
    Rows of a benchmark without their sound, the revision they come from, and their split: of an annotation file, its name.

    Raises:
        `InputError`: Not exactly one of `annotations` and `dataset` is given, or it cannot be used.
    """
    if (annotations is None) == (dataset is None):
        raise InputError("give the questions: either --annotations, the official file, or --dataset, built from it")
    if annotations is not None:
        return *read_annotations(benchmark, annotations, allow_unpinned), Path(annotations).name
    assert dataset is not None
    rows, revision = load_benchmark(benchmark, dataset, split, limit=None)
    return rows.remove_columns("audio").to_list(), revision, split or get_benchmark(benchmark).split

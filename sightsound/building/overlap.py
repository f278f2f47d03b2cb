"""Find clips and questions that two splits share: a model would be trained on them and tested with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any


Row = dict[str, Any]
COLUMNS = ("id", "video_id", "start_s", "media_sha256", "video_question", "choices")


@dataclass(frozen=True)
class Overlap:
    """
    What two splits share.

    Args:
        leak (`str`, *optional*): A sentence on shared clips and questions; None if there are none.
        same_ids (`str`, *optional*): A sentence on shared ids.
    """

    leak: str | None
    same_ids: str | None


def _rows(folder: Path, split: str) -> list[Row]:
    import pyarrow.parquet as pq

    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=list(COLUMNS)).to_pylist()]


def _clip(row: Row) -> tuple[str, float]:
    return row["video_id"], row["start_s"]


def _names_of_clip(row: Row) -> tuple[Any, Any]:
    """A clip is identified by its name and by its file, which can have two names."""
    return _clip(row), row["media_sha256"]


def _names_of_question(row: Row) -> list[Any]:
    return [(clip, row["video_question"], *sorted(row["choices"])) for clip in _names_of_clip(row)]


def _compare(first: str, second: str, rows: dict[str, list[Row]]) -> Overlap:
    clips = {name for row in rows[first] for name in _names_of_clip(row)}
    questions = {name for row in rows[first] for name in _names_of_question(row)}
    shared = [row for row in rows[second] if not clips.isdisjoint(_names_of_clip(row))]
    repeated = [row for row in shared if not questions.isdisjoint(_names_of_question(row))]
    ids = {row["id"] for row in rows[first]} & {row["id"] for row in rows[second]}
    leak = same_ids = None
    if shared:
        num_shared, num_clips = (len({_clip(row) for row in part}) for part in (shared, rows[second]))
        leak = (
            f"split {second} shares {num_shared} of its {num_clips} clips, and {len(repeated)} of its {len(rows[second])} "
            f"questions, with split {first} (first: id {shared[0]['id']}, {shared[0]['video_id']}); its questions in "
            f"{second} are not an independent test for a model trained on {first}"
        )
    if ids:
        same_ids = f"{len(ids)} ids occur in both split {first} and split {second}: join by split and id"
    return Overlap(leak, same_ids)


def overlaps(folder: Path, splits: Sequence[str]) -> list[Overlap]:
    """
    What each pair of splits shares. A clip is shared when its name and start, or its file, are in both.

    Args:
        folder (`Path`): Of a dataset, with its data files.
        splits (`Sequence[str]`): The training split first.
    """
    if len(splits) < 2:
        return []
    rows = {split: _rows(folder, split) for split in splits}
    return [_compare(first, second, rows) for first, second in combinations(splits, 2)]

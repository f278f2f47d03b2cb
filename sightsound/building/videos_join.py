"""
Join what was found in every video into a dataset: decide on duplicates, write ledger and shards, give segments their names.

All is read in the order of the videos, and what is in memory is a fingerprint of each segment. A join that is killed begins
again; it decodes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sightsound.building.near_duplicates import Fingerprint, SeenSegments
from sightsound.building.segments import SEGMENT, VIDEO
from sightsound.building.takedown import is_listed
from sightsound.cli import InputError
from sightsound.data import parquet, schema


Row = dict[str, Any]

ROWS_PER_SHARD = 500  # as of avqa-audio: about 100 MB of ten-second segments
SEGMENTS_FOLDER = "segments"
DECIDED_BY = ("kind", "outcome", "detail", "video_id", "source", "start_s", "video_sha256", "media_sha256", "sound", "pictures")


def segment_id(row: Row) -> str:
    """The id of a segment, and the name of its file: AVQA's form, with any video id."""
    return f"{row['video_id']}_{row['start_s']:06.0f}"


class _Decisions:
    """Which segments are built, given those before them."""

    def __init__(self, listed: set[str], segment_s: float):
        self._listed, self._seen = listed, SeenSegments(segment_s)
        self._ids: set[str] = set()
        self._videos: dict[bytes, str] = {}

    def entries(self, part: Path) -> Iterator[Row]:
        """The ledger's entries of a video: itself, then its segments."""
        *segments, video = parquet.read_parquet([part], DECIDED_BY)
        outcome, detail = self._of_video(video)
        decided = [{"id": segment_id(each), **self._of_segment(each, outcome)} for each in segments]
        num_built = sum(each["outcome"] == schema.BUILT for each in decided)
        if outcome == schema.BUILT:
            outcome = schema.BUILT if num_built else schema.NO_SEGMENT
        if segments and detail is None:
            detail = f"{num_built} of {len(segments)} places that were looked at"
        shared = {"source": video["source"]}
        yield {"id": video["video_id"], "kind": VIDEO, "outcome": outcome, "detail": detail, **shared}
        yield from (each | {"kind": SEGMENT, **shared} for each in decided)

    def _of_video(self, video: Row) -> tuple[str, str | None]:
        if is_listed(video, self._listed):
            return schema.TAKEN_DOWN, "on the takedown list"
        if video["video_sha256"] is not None:
            digest = bytes.fromhex(video["video_sha256"])
            if digest in self._videos:
                return schema.DUPLICATE_VIDEO, f"the same bytes as {self._videos[digest]}"
            self._videos[digest] = video["source"]
        return video["outcome"], video["detail"]

    def _of_segment(self, row: Row, of_video: str) -> Row:
        if of_video in (schema.TAKEN_DOWN, schema.DUPLICATE_VIDEO):
            return {"outcome": of_video, "detail": "its video is"}
        if row["outcome"] != schema.BUILT:
            return {"outcome": row["outcome"], "detail": row["detail"]}
        name = segment_id(row)
        if is_listed(row | {"id": name}, self._listed):
            return {"outcome": schema.TAKEN_DOWN, "detail": "on the takedown list"}
        if name in self._ids:
            return {"outcome": schema.DUPLICATE_ID, "detail": "an earlier segment has the same id"}
        fingerprint = Fingerprint.from_bytes(row["sound"], row["pictures"])
        if found := self._seen.same_sound(fingerprint):
            return {"outcome": schema.SAME_SOUND, "detail": f"{found[1]:.0%} of the bits differ from {found[0]}"}
        if found := self._seen.same_picture(fingerprint):
            return {"outcome": schema.SAME_PICTURE, "detail": f"{found[1]:.1f} of 64 bits differ from {found[0]}"}
        self._seen.add(name, fingerprint)
        self._ids.add(name)
        return {"outcome": schema.BUILT, "detail": None}


def join(parts: list[Path], folder: Path, listed: set[str], license_: str | None, segment_s: float) -> int:
    """
    Write `ledger.parquet`, and the rows and files of the segments that are built.

    Args:
        parts (`list[Path]`): Of all videos, in their order.
        folder (`Path`): Of the dataset.
        listed (`set`): Its takedown list.
        license_ (`str`, *optional*): Of the videos for which the source states none.
        segment_s (`float`): Length of a segment.

    Returns:
        `int`: Number of segments.
    """
    decisions, ledger = _Decisions(listed, segment_s), folder / "ledger.parquet"
    num_built = 0

    def entries() -> Iterator[Row]:
        nonlocal num_built
        for part in parts:
            for entry in decisions.entries(part):
                num_built += entry["kind"] == SEGMENT and entry["outcome"] == schema.BUILT
                yield entry

    parquet.write_parquet(entries(), schema.segments_ledger_features(), ledger)
    rows = _built_rows(parts, ledger, folder / SEGMENTS_FOLDER, license_)
    for number in range(count := math.ceil(num_built / ROWS_PER_SHARD)):
        file = folder / "data" / f"train-{number:05d}-of-{count:05d}.parquet"
        parquet.write_parquet(islice(rows, ROWS_PER_SHARD), schema.segments_features(), file)
    return num_built


def _built_rows(parts: Iterable[Path], ledger: Path, segments: Path, license_: str | None) -> Iterator[Row]:
    """The rows of the dataset. The file of each moves into the folder of segments."""
    segments.mkdir(exist_ok=True)
    decided = (entry for entry in parquet.read_parquet([ledger]) if entry["kind"] == SEGMENT)
    for part in parts:
        for row in parquet.read_parquet([part]):
            if row["kind"] == VIDEO or next(decided)["outcome"] != schema.BUILT:
                continue
            name = segment_id(row)
            if (cut := part.with_name(row["file"])).is_file():  # else a join that was killed has moved it
                os.replace(cut, segments / f"{name}.mp4")
            own = {name: row[name] for name in ("video_id", "start_s", "duration_s", "source", "author")}
            own |= {"license": _license(row["license"], license_), "audio": {"bytes": row["flac"], "path": f"{name}.flac"}}
            yield own | {"id": name, "segment": name} | {each: row[each] for each in ("media_sha256", "video_sha256")}


def _license(stated: str, license_: str | None) -> str:
    return license_ if stated == schema.UNKNOWN and license_ is not None else stated


def revise(folder: Path, listed: set[str], license_: str | None) -> bool:
    """
    Take what is listed out of a complete dataset, and give its rows of unknown licence the licence that is given.

    Returns:
        `bool`: Whether anything had to change.

    Raises:
        `InputError`: Nothing would be left.
    """
    files, ledger = sorted((folder / "data").glob("*.parquet")), folder / "ledger.parquet"
    rows = list(parquet.read_parquet(files, ["id", "video_id", "video_sha256", "media_sha256", "license"]))
    kept = [row for row in rows if not is_listed(row, listed)]
    if not kept:
        raise InputError(f"the takedown list leaves no segment in {folder}; delete the folder")
    ids, videos = {row["id"] for row in kept}, {row["video_id"] for row in kept}
    built = [entry for entry in parquet.read_parquet([ledger], ["id", "kind", "outcome"]) if entry["outcome"] == schema.BUILT]
    # Also what a revision that was killed has removed, and not yet said.
    gone = {entry["id"] for entry in built if entry["id"] not in (ids if entry["kind"] == SEGMENT else videos)}
    licensed = license_ is not None and any(row["license"] == schema.UNKNOWN for row in kept)
    if not gone and not licensed:
        return False

    def rows_of(file: Path) -> Iterator[Row]:
        for row in parquet.read_parquet([file]):
            if row["id"] in ids:
                yield row | {"license": _license(row["license"], license_)}

    def entries() -> Iterator[Row]:
        for entry in parquet.read_parquet([ledger]):
            is_gone = entry["outcome"] == schema.BUILT and entry["id"] in gone
            yield entry | ({"outcome": schema.TAKEN_DOWN, "detail": "on the takedown list"} if is_gone else {})

    for file in files:
        parquet.write_parquet(rows_of(file), schema.segments_features(), file)
    for name in gone:
        (folder / SEGMENTS_FOLDER / f"{name}.mp4").unlink(missing_ok=True)
    parquet.write_parquet(entries(), schema.segments_ledger_features(), ledger)
    return True

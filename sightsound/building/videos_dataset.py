"""
Build a dataset of segments from videos: cut every video, then join what was found into shards, ledger and card.

Cutting is the long part, and ranks share it: each file of the source belongs to one rank, and each video leaves a part in
`OUTPUT_DIR/.work`, written at once. What is there is never done again, whoever did it. Joining decides on duplicates, in the
order of the videos, so that the result does not depend on ranks, processes or kills.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sightsound.building.segments import CutSettings, Video, write_without_segments
from sightsound.building.takedown import keep_takedown, listed_in, published_in
from sightsound.building.video_columns import Columns, read_preset
from sightsound.building.video_sources import HUB, Entry, Source, open_folder, open_hub_dataset
from sightsound.building.video_workers import Task, VideoCutter
from sightsound.building.videos_join import join, revise
from sightsound.building.videos_report import check_licenses, outcome_table, summary, why_no_segment, write_card
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.parquet import storable
from sightsound.data.schema import RowError
from sightsound.data.sources import split_revision
from sightsound.hub.inputs import pin_repository
from sightsound.hub.publish import PublishArguments, refuse_offline
from sightsound.scale.executors import LEDGER_PART, ScaleArguments, run_ranks
from sightsound.scale.ranks import finish, open_stage, slice_of
from sightsound.stage import RANKS_FOLDER, Stage, is_complete, write_atomically


WORK_FOLDER = ".work"
DONE_FILE = "done"  # of a file of the source, whose videos all have their parts


@dataclass(kw_only=True)
class VideosArguments(PublishArguments, ScaleArguments):
    source: str = field(metadata={"help": "folder of videos, or hf://datasets/ORG/NAME[@REVISION]"})
    output_dir: str = field(metadata={"help": "where to write the dataset"})
    segment_s: int = field(default=10, metadata={"help": "length of a segment, whole seconds", "minimum": 1})
    hop_s: int | None = field(
        default=None, metadata={"help": "seconds from one segment's beginning to the next (default: --segment_s)", "minimum": 1}
    )
    segments_per_video: int | None = field(
        default=None, metadata={"help": "at most so many of a video, evenly spread (default: all)", "minimum": 1}
    )
    preset: str | None = field(default=None, metadata={"help": "names of columns in a published set: finevideo, vggsound"})
    files: str | None = field(default=None, metadata={"help": "only files of the source that match, such as data/train-*"})
    video_column: str | None = field(default=None, metadata={"help": "column with the videos' bytes (default: the only one)"})
    id_column: str | None = field(default=None, metadata={"help": "column with the videos' ids, or a path: json.id"})
    license_column: str | None = field(default=None, metadata={"help": "column with the videos' licences"})
    author_column: str | None = field(default=None, metadata={"help": "column with the videos' authors"})
    license: str | None = field(default=None, metadata={"help": "licence of the videos for which the source states none"})
    takedown: str | None = field(default=None, metadata={"help": "file of video ids or sha256 that must not be in the dataset"})
    limit: int | None = field(default=None, metadata={"help": "only the first N files of the source", "minimum": 1})
    num_proc: int = field(default=2, metadata={"help": "processes, of each rank", "minimum": 1})

    def columns(self) -> Columns:
        """The preset's columns, and those of flags, which go first."""
        names = ("files", "video_column", "id_column", "license_column", "author_column", "license")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return Columns(**(read_preset(self.preset) if self.preset else {}) | given)

    def cut_settings(self) -> CutSettings:
        return CutSettings(self.segment_s, self.hop_s or self.segment_s, self.segments_per_video)


def _settings(args: VideosArguments, columns: Columns) -> dict[str, Any]:
    """What a rerun has to share. Licences and takedowns are applied to a finished dataset too."""
    read = {name: getattr(columns, name) for name in ("files", "video_column", "id_column", "license_column", "author_column")}
    cut = args.cut_settings()
    settings = read | {"segment_s": cut.segment_s, "hop_s": cut.hop_s, "segments_per_video": cut.segments_per_video}
    # A folder may be found under another name, as `media_dir` may; its files are known by size and time.
    return settings | {"source" if _is_pinned(args.source) else "media_dir": args.source, "limit": args.limit}


def _is_pinned(source: str) -> bool:
    return split_revision(source)[1] is not None


class _Work:
    """
    The parts of a build.

    Args:
        output_dir (`str`): Of the dataset.
        settings (`dict`): Of the stage: parts that were made with others are not taken.
    """

    def __init__(self, output_dir: str, settings: dict[str, Any]):
        self.root = Path(output_dir, WORK_FOLDER)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = self.root / digest
        self.downloads = self.folder / "downloads"

    def of_file(self, source: Source, path: str) -> Path:
        """The folder for the parts of a file's videos. A file that changes is another one."""
        return self.folder / hashlib.sha256(f"{path} {source.state(path)}".encode(errors="backslashreplace")).hexdigest()[:24]

    def parts_of(self, source: Source, paths: list[str]) -> Iterator[Path]:
        """The parts of files, in the order of the videos."""
        for path in paths:
            yield from sorted(self.of_file(source, path).glob("*.parquet"))

    def has_parts(self) -> bool:
        return next(self.folder.glob("*/*.parquet"), None) is not None

    def delete(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def build_videos(args: VideosArguments) -> None:
    """
    Build a dataset folder, continue one, or bring a complete one in line with its takedown list; then publish it if asked.

    Raises:
        `InputError`: The source cannot be used, not a single segment is left, or rows to publish have no licence.
    """
    columns = args.columns()
    if args.source.startswith(HUB):
        name, revision = split_revision(args.source.removeprefix(HUB))
        args.source = pin_repository("source", name, revision, args.output_dir)
    elif Path(args.output_dir).resolve().is_relative_to(Path(args.source).resolve()):
        raise InputError(f"--output_dir {args.output_dir} lies in --source {args.source}; choose a folder beside it")
    elif not is_complete(Path(args.output_dir)):
        open_folder(args.source, columns)  # before anything is written
    published: set[str] = set()
    if args.push_to_hub is not None and args.rank is None:
        refuse_offline()
        published = published_in(args.push_to_hub)
    settings = _settings(args, columns)
    work = _Work(args.output_dir, settings)
    with open_stage(args, args.output_dir, settings) as stage:
        if stage.complete:
            work.delete()
            listed = listed_in(stage.path, args.takedown) | published
            keep_takedown(stage.path, listed)
            if revise(stage.path, listed, columns.license):
                write_card(stage.path, args.segment_s)
                stage.finish()
            print(f"{stage.path} is complete: {summary(stage.path)}")
        else:
            try:
                if not _build(args, columns, work, stage, published):
                    return
            except InputError:
                if not work.has_parts() and args.rank is None:
                    work.delete()  # so that the corrected command can have other settings
                raise
        if args.push_to_hub is not None:
            check_licenses(stage.path)
        args.publish(stage.path)


def _build(args: VideosArguments, columns: Columns, work: _Work, stage: Stage, published: set[str]) -> bool:
    """Returns whether the dataset is complete: not so in a rank, and when ranks were only submitted."""
    if _is_pinned(args.source):
        source = open_hub_dataset(args.source, columns, work.downloads)
    else:
        source = open_folder(args.source, columns)
    source.check_columns()
    paths = list(source.files)[: args.limit]
    listed = listed_in(Path(args.output_dir), args.takedown) | published
    if args.rank is not None:
        mine = range(len(paths))[slice_of(len(paths), args.rank, args.num_tasks, 1)]
        _cut_files(source, paths, mine, args, work, listed)
        write_atomically(stage.path / LEDGER_PART, "")
        print(f"rank {args.rank} of {args.num_tasks}: {len(mine)} files")
        return False
    keep_takedown(stage.path, listed)
    if args.num_tasks > 1 and not run_ranks(args, args.output_dir):
        return False
    # After ranks, only what has come into the folder since they looked.
    _cut_files(source, paths, range(len(paths)), args, work, listed)
    num_built = join(list(work.parts_of(source, paths)), stage.path, listed, columns.license, args.segment_s)
    if not num_built:
        work.delete()
        shutil.rmtree(stage.path / RANKS_FOLDER, ignore_errors=True)
        stage.forget_settings()
        raise InputError(why_no_segment(stage.path, source.name))
    write_card(stage.path, args.segment_s)
    print(f"{summary(stage.path)}\n\n{outcome_table(stage.path)}")
    finish(stage)
    work.delete()
    return True


def _cut_files(source: Source, paths: list[str], numbers: range, args: VideosArguments, work: _Work, listed: set[str]) -> None:
    """Cut the videos of some files of the source, as far as they have no parts yet."""
    from tqdm import tqdm

    read: list[int] = []  # files whose videos are all in work or done, and that are still here
    number_of: dict[Path, int] = {}  # of a file, by the folder of its parts

    def tasks() -> Iterator[Task]:
        for number in numbers:
            path = paths[number]
            folder = work.of_file(source, path)
            number_of[folder] = number
            if (folder / DONE_FILE).is_file() or (source.is_video(path) and _part(folder, 0).is_file()):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            local = source.fetch(path, work.downloads)
            for entry in source.entries(path, local, folder, partial(_is_done, folder)):
                if (task := _task(source, path, local, entry, folder, listed)) is not None:
                    yield task
            if not source.is_video(path):
                read.append(number)

    def finish_files(before: float) -> None:
        while read and read[0] < before:
            number = read.pop(0)
            (work.of_file(source, paths[number]) / DONE_FILE).touch()
            source.forget(paths[number], work.downloads)

    with VideoCutter(args.cut_settings(), args.num_proc) as cutter, tqdm(desc="videos", unit="video", mininterval=1.0) as bar:
        for _, part in cutter.cut(tasks()):
            finish_files(before=number_of[part.parent])
            bar.update()
        finish_files(before=float("inf"))


def _part(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.parquet"


def _is_done(folder: Path, index: int) -> bool:
    return _part(folder, index).is_file()


def _task(source: Source, path: str, local: Path, entry: Entry, folder: Path, listed: set[str]) -> Task | None:
    """A video to cut, as a file on this disk; None if there is nothing to cut, which its part then says."""
    video_id, offset_s = source.columns.id_of(entry.row, entry.name)
    part, saved = _part(folder, entry.index), folder / f"{entry.index:06d}.video"
    video = Video(
        path=str(local if entry.save is None else saved),
        video_id=video_id,
        source=storable(source.shown(path) if entry.save is None else f"{source.shown(path)}#{entry.index}"),
        license=storable(source.columns.license_of(entry.row)),
        author=storable(source.columns.author_of(entry.row)),
        offset_s=offset_s,
        is_temporary=entry.save is not None or source.is_download(path),
    )
    try:
        if video_id in listed:
            raise RowError(schema.TAKEN_DOWN, "its id is on the takedown list")
        if entry.save is not None:
            entry.save(saved)
    except RowError as error:
        write_without_segments(video, part, error.outcome, str(error))
        return None
    return video, part

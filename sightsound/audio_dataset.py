"""
What the builders of audio datasets share: annotations and clips in, a dataset repository with its ledger and card out.

A builder's script says how one annotation reads and where its clip lies (`AudioDataset`); decoding, shards, resume,
coverage and card are here. Annotations are judged before any clip is opened, so a worker gets rows that only
lack their sound.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import schema
from .annotations import Row, RowError, check_text
from .cli import InputError, read_json
from .hub import render_card, write_dataset_card
from .journal import Stage, fingerprint, leave_with_parent, worker_pool
from .media import MediaError, MediaFolder, encode_flac, is_silent, load_clip, open_media, sha256_of
from .publishing import SHOWN_AUDIO, PublishArguments, as_json, dataset_info, provenance


if TYPE_CHECKING:
    from datasets import Features

# An entry of the ledger, and the row that it is about where the annotation is good: all columns but the sound.
Judged = tuple[Row, Row | None]

# Rows of one file. With ten-second clips that is about 75 MB, with minutes of music about 400 MB: under the 500 MB per file
# that the Hub suggests. It is also what a kill can cost each process; memory does not depend on it (`schema.write_parquet`).
ROWS_PER_SHARD = 500
# Sound shorter than this, after cutting, is `too_short`; so a whole video has to reach this far beyond the question's start.
# A fifth of a second is five audio tokens of Qwen2-Audio and about one bark or syllable; less is left over from a bad cut.
MIN_DURATION_S = 0.2
# Their headers tell no length, and what ffmpeg guesses from the bit rate at the beginning can be seconds off.
LENGTH_IS_GUESSED = ("aac", "mp3")
MAX_DETAIL_CHARACTERS = 300  # of the ledger; enough for a message and the value that it is about


@dataclass(kw_only=True)
class AudioDatasetArguments(PublishArguments):
    media_dir: str = field(metadata={"help": "folder with the clips, searched recursively"})
    output_dir: str = field(metadata={"help": "where to write the dataset"})
    limit: int | None = field(default=None, metadata={"help": "only the first N annotations of each split", "minimum": 1})
    num_proc: int = field(default=2, metadata={"help": "processes", "minimum": 1})


@dataclass(frozen=True)
class AudioDataset:
    """
    What sets one audio dataset apart from the others. Functions are the builder's own and stand at the top of its script.

    Args:
        features (`Callable`): Columns, from `schema`.
        to_row (`Callable`): An annotation, of any type that JSON has, -> its columns without `audio`, `duration_s` and
            `media_sha256`. Raises `RowError`.
        clip_name (`Callable`): Such a row -> the name of its clip without the extension.
        id_key (`str`): Where an annotation keeps its id.
        official_file (`str`): Whose format is expected, for messages.
        example_clip (`str`): A clip's file name, for messages.
        card (`str`): Template in `model_cards/`.
        front_matter (`dict`): Of the card.
    """

    features: Callable[[], Features]
    to_row: Callable[[Any], Row]
    clip_name: Callable[[Row], str]
    id_key: str
    official_file: str
    example_clip: str
    card: str
    front_matter: dict[str, Any]


def _storable(text: str) -> str:
    """Text for the ledger: file names and annotations can hold what UTF-8 cannot, and be of any length."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain if len(plain) <= MAX_DETAIL_CHARACTERS else f"{plain[:MAX_DETAIL_CHARACTERS]}..."


def _explain(entry: Row, error: RowError) -> None:
    entry |= {"outcome": error.outcome, "detail": _storable(str(error))}


def judge(dataset: AudioDataset, annotations: list[Any]) -> Iterator[Judged]:
    """Every annotation of a split by itself. One that is bad neither takes an id nor repeats one."""
    seen: set[str] = set()
    for annotation in annotations:
        named = _storable(str(annotation.get(dataset.id_key))) if isinstance(annotation, dict) else ""
        entry: Row = {"id": named, "outcome": schema.BUILT, "detail": None}
        row: Row | None = None
        try:
            row = dataset.to_row(annotation)
            check_text(row)
            if row["id"] in seen:
                raise RowError(schema.DUPLICATE_ID, "the id stands in an earlier row")
            seen.add(row["id"])
        except RowError as error:
            row = None
            _explain(entry, error)
        yield entry, row


def _ends_s(path: str) -> float | None:
    """Where a file ends by its own header; None when it does not say. What is broken about it `load_clip` tells."""
    import av

    try:
        with open_media(path) as container:
            if container.duration is None or container.format.name in LENGTH_IS_GUESSED:
                return None
            return container.duration / av.time_base
    except MediaError:
        return None


def hear(name: str, media: MediaFolder) -> Row:
    """
    The sound of a clip, as the columns `audio`, `duration_s` and `media_sha256`.

    Raises:
        `RowError`: There is no such clip, or nothing can be heard in it.
    """
    clip = media.find(name)
    if clip is None:
        raise RowError(schema.MISSING_MEDIA, f"no clip named {name}.*")
    shown = os.path.relpath(clip.path, media.root)
    if clip.start_s > 0:
        ends_s = _ends_s(clip.path)
        if ends_s is not None and ends_s < clip.start_s + MIN_DURATION_S:
            raise RowError(
                schema.TOO_SHORT, f"{shown}: the video ends at {ends_s:.2f} s, the question's part begins at {clip.start_s:g} s"
            )
    try:
        waveform = load_clip(clip.path, start_s=clip.start_s, max_duration_s=clip.max_duration_s)
    except MediaError as error:
        raise RowError(error.outcome, f"{shown}: {error}") from error
    duration_s = len(waveform) / schema.SAMPLING_RATE
    if duration_s < MIN_DURATION_S:
        raise RowError(schema.TOO_SHORT, f"{shown}: {duration_s:.3f} s of sound, expected at least {MIN_DURATION_S:g} s")
    if is_silent(waveform):
        raise RowError(schema.SILENT, f"{shown}: the track carries no sound")
    try:
        sha256 = sha256_of(clip.path)
    except OSError as error:
        raise RowError(schema.CORRUPT_MEDIA, f"{shown}: {error}") from error
    audio = {"bytes": encode_flac(waveform), "path": f"{name}.flac"}
    return {"audio": audio, "duration_s": duration_s, "media_sha256": sha256}


def start_worker() -> None:
    """Initializer of the pool: one thread for each process, which ends with the main process."""
    import torch

    torch.set_num_threads(1)
    leave_with_parent()


def build_shard(shard: tuple[str, list[Judged]], dataset: AudioDataset, folder: Path, media: MediaFolder) -> int:
    """
    Write one shard of a split: its rows and, last, its part of the ledger, which marks the shard as done.

    Args:
        shard: Its name (`train-00000-of-00004`) and its annotations.

    Returns:
        `int`: How many annotations it holds.
    """
    name, judged = shard
    ledger_path = folder / "ledger" / f"{name}.parquet"
    if ledger_path.exists():
        return len(judged)

    def heard() -> Iterator[Row]:
        for entry, row in judged:
            if row is None:
                continue
            try:
                sound = hear(dataset.clip_name(row), media)
            except RowError as error:
                _explain(entry, error)
            else:
                yield row | sound

    schema.write_parquet(heard(), dataset.features(), folder / "data" / f"{name}.parquet")
    schema.write_ledger((entry for entry, _ in judged), ledger_path)
    return len(judged)


def shards_of(split: str, judged: list[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    """Cut a split into named shards; a split without a row is one empty shard."""
    count = max(1, math.ceil(len(judged) / ROWS_PER_SHARD))
    for i in range(count):
        yield f"{split}-{i:05d}-of-{count:05d}", judged[i * ROWS_PER_SHARD : (i + 1) * ROWS_PER_SHARD]


def join_ledger(folder: Path, splits: Sequence[str]) -> dict[str, Counter[str]]:
    """Join the shards' ledgers into `ledger.parquet`; returns how often each outcome occurred in each split."""
    import pyarrow.parquet as pq

    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}

    def entries() -> Iterator[Row]:
        for split in splits:
            for part in sorted((folder / "ledger").glob(f"{split}-*.parquet")):
                for entry in pq.read_table(part).to_pylist():
                    counts[split][entry["outcome"]] += 1
                    yield entry

    schema.write_ledger(entries(), folder / "ledger.parquet")
    return counts


def coverage_table(counts: dict[str, Counter[str]]) -> str:
    """What became of the annotations, as a Markdown table: a row per outcome, a column per split."""
    columns = dict(counts) if len(counts) == 1 else {**counts, "all": sum(counts.values(), Counter())}
    lines = [f"| outcome | {' | '.join(columns)} | meaning |", "| --- " * (len(columns) + 2) + "|"]
    for outcome, meaning in schema.BUILD_OUTCOMES.items():
        cells = " | ".join(str(count[outcome]) for count in columns.values())
        lines.append(f"| {outcome} | {cells} | {meaning} |")
    totals = " | ".join(str(count.total()) for count in columns.values())
    return "\n".join([*lines, f"| annotations | {totals} | |"])


def sample_row(folder: Path, splits: Sequence[str]) -> Row:
    """The first row that was built, its sound replaced by a word on it."""
    import pyarrow.parquet as pq

    files = [file for split in splits for file in sorted((folder / "data").glob(f"{split}-*.parquet"))]
    for file in files:
        with pq.ParquetFile(file) as content:
            if content.metadata.num_rows:
                columns = [name for name in content.schema_arrow.names if name != "audio"]
                row = next(content.iter_batches(batch_size=1, columns=columns)).to_pylist()[0]
                return {name: row.get(name, SHOWN_AUDIO) for name in content.schema_arrow.names}
    raise ValueError(f"no row in {folder}")


def write_card(folder: Path, dataset: AudioDataset, counts: dict[str, Counter[str]], **values: Any) -> None:
    """Write the README.md: front matter, coverage, a sample row and what built it."""
    # `load_dataset` refuses a dataset of which one split is empty; the ledger tells what became of it.
    splits = [split for split, count in counts.items() if count[schema.BUILT]]
    configs = {"default": {split: f"data/{split}-*.parquet" for split in splits}}
    text = render_card(
        dataset.card,
        coverage=coverage_table(counts),
        sample=as_json(sample_row(folder, list(counts))),
        min_duration_s=MIN_DURATION_S,
        repository=folder.resolve().name,
        split=splits[0],
        **provenance(),
        **values,
    )
    info = dataset_info(folder, configs, {"default": dataset.features()})
    write_dataset_card(folder, text, configs, dataset_info=info, **dataset.front_matter)


def build_dataset(dataset: AudioDataset, args: AudioDatasetArguments, annotations: dict[str, str], **card_values: Any) -> None:
    """
    Build a dataset folder from annotation files, continue one, or do nothing when it is complete; then publish it if asked.

    Args:
        dataset (`AudioDataset`): Which one.
        args (`AudioDatasetArguments`): What the user asked for.
        annotations (`dict`): Split to annotation file.
        card_values: What the card's template names beyond what every audio dataset has.

    Raises:
        `InputError`: An annotation file or the media folder cannot be used, or not a single row could be built.
    """
    settings = {"media_dir": args.media_dir, "limit": args.limit}
    settings |= {f"{split}_annotations": fingerprint(path) for split, path in annotations.items()}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
        else:
            try:
                _build(dataset, args, annotations, stage, card_values)
            except InputError:
                if not any((stage.path / part).exists() for part in ("ledger", "data")):
                    stage.forget_settings()  # nothing was kept: the corrected command may have others
                raise
        args.publish(stage.path)


def _build(
    dataset: AudioDataset, args: AudioDatasetArguments, annotations: dict[str, str], stage: Stage, card_values: Row
) -> None:
    from tqdm import tqdm

    media = MediaFolder(args.media_dir)
    shards: list[tuple[str, list[Judged]]] = []
    sources = []
    for split, path in annotations.items():
        rows = read_json(path)
        if not isinstance(rows, list):
            raise InputError(
                f"{path}: expected a list of annotations as in {dataset.official_file}, found {type(rows).__name__}"
            )
        if not rows:
            raise InputError(f"{path} holds no annotations; was its list written to the end?")
        shards += shards_of(split, list(judge(dataset, rows[: args.limit])))
        sources.append({"split": split, "file": Path(path).name, "rows": len(rows), "sha256": sha256_of(path)})
    build = partial(build_shard, dataset=dataset, folder=stage.path, media=media)
    total = sum(len(judged) for _, judged in shards)
    with (
        worker_pool(args.num_proc, start_worker) as pool,
        tqdm(total=total, desc="annotations", unit="row", mininterval=1.0) as bar,
    ):
        for done in pool.map(build, shards):
            bar.update(done)
    counts = join_ledger(stage.path, list(annotations))
    outcomes = sum(counts.values(), Counter[str]())
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{total} annotations: {told}\n\n{coverage_table(counts)}")
    if not outcomes[schema.BUILT]:
        for part in ("ledger", "data"):  # a rerun looks for clips again, perhaps for other annotations
            shutil.rmtree(stage.path / part)
        if outcomes.keys() == {schema.BAD_ANNOTATION}:
            files, ledger = " and ".join(annotations.values()), f"{stage.path}/ledger.parquet tells what is wrong with each"
            raise InputError(
                f"no row could be built from {total} annotations ({told}): {files} is not {dataset.official_file}, nor of its "
                f"form; give that file; {ledger}"
            )
        raise InputError(
            f"no row could be built from {total} annotations ({told}); expected clips such as "
            f"{args.media_dir}/{dataset.example_clip}; {stage.path}/ledger.parquet tells every row's outcome"
        )
    write_card(stage.path, dataset, counts, sources=sources, **card_values)
    stage.finish()

"""
What the builders of audio datasets share: annotations and clips in, a dataset repository with its ledger and card out.

The benchmark (`sightsound/benchmarks/`) says how one annotation reads and where its clip lies; decoding, shards, resume,
coverage and card are here. Annotations are validated before any clip is opened, so a worker gets rows that only
lack their sound.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.benchmarks import Benchmark, front_matter_for, get_benchmark
from sightsound.building.overlap import overlaps
from sightsound.building.report import (
    contents_in_words,
    coverage_table,
    files_by_choice,
    first_reasons,
    outcomes_in_words,
    why_no_row,
    write_card,
)
from sightsound.building.sounds import Sound, SoundReader
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.annotations import Row, RowError, check_text, read_annotations
from sightsound.data.clips import MediaFolder, sha256_of, without_extension
from sightsound.hub.publish import PublishArguments
from sightsound.stage import Stage, fingerprint


if TYPE_CHECKING:
    from tqdm import tqdm

# An entry of the ledger, and its row without the audio columns; None if the annotation is bad.
Validated = tuple[Row, Row | None]
Shard = tuple[str, list[Validated]]  # name (`train-00000-of-00004`) and annotations

# Rows of one file: about 75 MB with ten-second clips, about 400 MB with minutes of music. The Hub suggests up to 500 MB. A
# kill costs at most one shard. Memory does not depend on it (`parquet.write_parquet`).
ROWS_PER_SHARD = 500


@dataclass(kw_only=True)
class AudioDatasetArguments(PublishArguments):
    media_dir: str = field(metadata={"help": "folder with the clips, searched recursively"})
    output_dir: str = field(metadata={"help": "where to write the dataset"})
    limit: int | None = field(default=None, metadata={"help": "only the first N annotations of each split", "minimum": 1})
    num_proc: int = field(default=2, metadata={"help": "processes", "minimum": 1})


def _explain(entry: Row, error: RowError) -> None:
    entry |= {"outcome": error.outcome, "detail": parquet.storable(str(error))}


def validate(dataset: Benchmark, annotations: list[Any]) -> Iterator[Validated]:
    """Check every annotation of a split. The id of a bad annotation remains free for a later one."""
    seen: set[str] = set()
    for annotation in annotations:
        named = parquet.storable(str(annotation.get(dataset.id_key))) if isinstance(annotation, dict) else ""
        entry: Row = {"id": named, "outcome": schema.BUILT, "detail": None}
        row: Row | None = None
        try:
            row = dataset.to_row(annotation)
            check_text(row)
            if row["id"] in seen:
                raise RowError(schema.DUPLICATE_ID, "an earlier row has the same id")
            seen.add(row["id"])
        except RowError as error:
            row = None
            _explain(entry, error)
        yield entry, row


def count_lettered(dataset: Benchmark, annotations: list[Any], validated: list[Validated]) -> int:
    """How many good annotations had letters before their choices, which `annotations.without_letters` removed."""
    key = dataset.choices_key
    if key is None:
        return 0
    pairs = zip(annotations, validated, strict=False)  # `--limit` validates only the first ones
    # A row may lack empty choices at the end of its annotation's.
    given = ((row["choices"], [str(each) for each in annotation[key]]) for annotation, (_, row) in pairs if row is not None)
    return sum(choices != texts[: len(choices)] for choices, texts in given)


def _rows_with_sound(
    validated: list[Validated],
    dataset: Benchmark,
    media: MediaFolder,
    reader: SoundReader,
    sounds: Iterator[Sound],
    bar: tqdm,
) -> Iterator[Row]:
    """The rows with a usable clip. For all others, the reason is written into the ledger entry."""
    for entry, row in validated:
        bar.update()
        if row is None:
            continue
        name, sound = dataset.clip_name(row), next(sounds)
        try:
            yield row | _audio_columns(name, sound, media, reader)
        except RowError as error:
            _explain(entry, error)
            continue
        if choice := _choice_of_file(name, sound, media):
            entry["detail"] = parquet.storable(choice)


def _audio_columns(name: str, sound: Sound, media: MediaFolder, reader: SoundReader) -> Row:
    """
    The columns `audio`, `duration_s` and `media_sha256`.

    Raises:
        `RowError`: There is no such clip, or none of its files can be used.
    """
    if sound.clip is None:
        if not sound.failures:
            raise RowError(schema.MISSING_MEDIA, f"no clip named {without_extension(name)}.*")
        raise RowError(sound.failures[0][0], "; ".join(detail for _, detail in sound.failures))
    try:
        sha256 = reader.sha256_of(sound.clip.path)
    except OSError as error:
        shown = os.path.relpath(sound.clip.path, media.root)
        raise RowError(schema.CORRUPT_MEDIA, f"{shown}: {error}") from error
    audio = {"bytes": sound.flac, "path": f"{name}.flac"}
    return {"audio": audio, "duration_s": sound.duration_s, "media_sha256": sha256}


def _choice_of_file(name: str, sound: Sound, media: MediaFolder) -> str | None:
    """Which file was taken and why, if the clip's name alone does not say."""
    if sound.clip is None:
        return None
    reasons = [detail for _, detail in sound.failures]
    if others := media.namesakes(name, sound.clip):
        reasons.append(f"other files of that name: {', '.join(os.path.relpath(path, media.root) for path in others)}")
    return f"{os.path.relpath(sound.clip.path, media.root)} was used; {'; '.join(reasons)}" if reasons else None


def shards_of(split: str, validated: list[Validated]) -> Iterator[tuple[str, list[Validated]]]:
    """Cut a split into named shards. An empty split is one empty shard."""
    count = max(1, math.ceil(len(validated) / ROWS_PER_SHARD))
    for i in range(count):
        yield f"{split}-{i:05d}-of-{count:05d}", validated[i * ROWS_PER_SHARD : (i + 1) * ROWS_PER_SHARD]


def join_ledger(folder: Path, splits: Sequence[str]) -> tuple[dict[str, Counter[str]], list[Row]]:
    """Join the shards' ledgers into `ledger.parquet`; returns the counts of outcomes per split, and all entries."""
    import pyarrow.parquet as pq

    entries: list[Row] = []
    for split in splits:
        for part in sorted((folder / "ledger").glob(f"{split}-*.parquet")):
            entries += [entry | {"split": split} for entry in pq.read_table(part).to_pylist()]
    parquet.write_parquet(entries, schema.build_ledger_features(), folder / "ledger.parquet")
    return {split: Counter(entry["outcome"] for entry in entries if entry["split"] == split) for split in splits}, entries


def build_dataset(name: str, args: AudioDatasetArguments, annotations: dict[str, str], **card_values: Any) -> None:
    """
    Build a dataset folder from annotation files, continue one, or do nothing when it is complete; then publish it if asked.

    Args:
        name (`str`): The benchmark that the annotations are of, or whose format they have.
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
            print(f"{stage.path} is complete: {contents_in_words(stage.path)}; delete the folder to build again")
        else:
            try:
                _build(name, args, annotations, stage, card_values)
            except InputError:
                if not any((stage.path / part).exists() for part in ("ledger", "data")):
                    stage.forget_settings()  # so that the corrected command can have other settings
                raise
        args.publish(stage.path)


def _build(name: str, args: AudioDatasetArguments, annotations: dict[str, str], stage: Stage, card_values: Row) -> None:
    dataset, media = get_benchmark(name), MediaFolder(args.media_dir)
    shards: list[Shard] = []
    sources, num_lettered = [], 0
    for split, path in annotations.items():
        rows = read_annotations(path, dataset.official_file)
        if dataset.check_answers is not None:
            dataset.check_answers(path, rows)
        validated = list(validate(dataset, rows[: args.limit]))
        num_lettered += count_lettered(dataset, rows, validated)
        shards += shards_of(split, validated)
        sources.append({"split": split, "file": Path(path).name, "rows": len(rows), "sha256": sha256_of(path)})
    _write_shards(shards, dataset, stage.path, media, args.num_proc)
    counts, ledger = join_ledger(stage.path, list(annotations))
    print(f"{len(ledger)} annotations: {outcomes_in_words(counts)}\n\n{coverage_table(counts)}")
    if num_lettered:
        print(f"the choices of {num_lettered} questions began with their letters (A, B, ...), which were removed")
    if all(entry["outcome"] != schema.BUILT for entry in ledger):
        for part in ("ledger", "data"):  # so that a rerun looks for the clips again
            shutil.rmtree(stage.path / part)
        files, ledger_path = list(annotations.values()), stage.path / "ledger.parquet"
        raise InputError(why_no_row(counts, ledger, dataset.official_file, files, media, ledger_path))
    shared = _print_findings(stage.path, counts, ledger)
    front_matter, described = dataset.front_matter, Row()
    if dataset.describe is not None:
        rows_of_ledger = (row for _, validated in shards for _, row in validated)
        built = zip(ledger, rows_of_ledger, strict=True)
        front_matter, described = dataset.describe([row for entry, row in built if row and entry["outcome"] == schema.BUILT])
    features, values = dataset.features(), {"sources": sources, "num_lettered": num_lettered, **card_values, **described}
    write_card(stage.path, dataset.card, front_matter | front_matter_for(name), features, counts, shared, **values)
    stage.finish()


def _print_findings(folder: Path, counts: dict[str, Counter[str]], ledger: Sequence[Row]) -> list[str]:
    """Print what a user has to know before using the dataset; returns what its splits share, one sentence each."""
    if reasons := first_reasons(ledger):
        print("\nThe first row of each outcome:")
        print("\n".join(f"  {outcome}: {reason}" for outcome, reason in reasons.items()))
    if chosen := files_by_choice(ledger):
        print(chosen)
    for split, count in counts.items():
        if not count[schema.BUILT]:
            print(f"warning: no row of split {split} could be built; the dataset has no such split", file=sys.stderr)
    shared = overlaps(folder, list(counts))
    for overlap in shared:
        if overlap.leak:
            print(f"warning: {overlap.leak}", file=sys.stderr)
        if overlap.same_ids:
            print(overlap.same_ids)
    return [part for overlap in shared for part in (overlap.leak, overlap.same_ids) if part]


def _write_shards(shards: list[Shard], dataset: Benchmark, folder: Path, media: MediaFolder, num_proc: int) -> None:
    """
    Write the missing shards, one after the other: first the rows, then the part of the ledger, which marks a shard as done.

    Worker processes decode clips ahead, also those of the next shard.
    """
    from tqdm import tqdm

    missing = [(name, validated) for name, validated in shards if not (folder / "ledger" / f"{name}.parquet").exists()]
    total, left = (sum(len(validated) for _, validated in part) for part in (shards, missing))
    rows = (row for _, validated in missing for _, row in validated if row is not None)
    with (
        SoundReader(media.root, num_proc) as reader,
        tqdm(total=total, initial=total - left, desc="annotations", unit="row", mininterval=1.0) as bar,
    ):
        sounds = reader.sounds(media.candidates(dataset.clip_name(row)) for row in rows)
        for name, validated in missing:
            built = _rows_with_sound(validated, dataset, media, reader, sounds, bar)
            parquet.write_parquet(built, dataset.features(), folder / "data" / f"{name}.parquet")
            parquet.write_ledger((entry for entry, _ in validated), folder / "ledger" / f"{name}.parquet")

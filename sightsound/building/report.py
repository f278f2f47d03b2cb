"""What the build of an audio dataset prints, writes on its card, and says when no row could be built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.building.sounds import MIN_DURATION_S
from sightsound.data import schema
from sightsound.data.clips import MediaFolder
from sightsound.hub.cards import (
    SHOWN_AUDIO,
    as_json,
    dataset_info,
    markdown_table,
    provenance,
    render_card,
    write_dataset_card,
)


if TYPE_CHECKING:
    from datasets import Features

Row = dict[str, Any]
Counts = dict[str, Counter[str]]  # split -> outcome -> rows

CLIP_OUTCOMES = (schema.CORRUPT_MEDIA, schema.NO_AUDIO, schema.SILENT, schema.TOO_SHORT, schema.DECODER_CRASHED)
ANSWER_OUTCOMES = (schema.ANSWER_OUT_OF_RANGE, schema.ANSWER_NOT_A_CHOICE)


def coverage_table(counts: Counts) -> str:
    """How many annotations had which outcome, as a Markdown table: a row per outcome, a column per split."""
    columns = dict(counts) if len(counts) == 1 else {**counts, "all": sum(counts.values(), Counter())}
    rows = [[o, *(count[o] for count in columns.values()), meaning] for o, meaning in schema.BUILD_OUTCOMES.items()]
    totals = ["annotations", *(count.total() for count in columns.values()), ""]
    return "\n".join(markdown_table(["outcome", *columns, "meaning"], [*rows, totals]))


def outcomes_in_words(counts: Counts) -> str:
    """`3 built, 1 silent`, the most common one first."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sum(counts.values(), Counter[str]()).most_common())


def contents_in_words(folder: Path) -> str:
    """`1 of 2 annotations built, 1 missing_media`, from the ledger of a finished build."""
    import pyarrow.parquet as pq

    outcomes = Counter(pq.read_table(folder / "ledger.parquet", columns=["outcome"])["outcome"].to_pylist())
    others = [f"{count} {outcome}" for outcome, count in outcomes.most_common() if outcome != schema.BUILT]
    return ", ".join([f"{outcomes[schema.BUILT]} of {outcomes.total()} annotations built", *others])


def first_reasons(ledger: Sequence[Row]) -> dict[str, str]:
    """Outcome -> the first annotation with it, and the reason; without `built`."""
    reasons: dict[str, str] = {}
    for entry in ledger:
        if entry["outcome"] != schema.BUILT:
            reasons.setdefault(entry["outcome"], f"{entry['split']}, id {entry['id'] or '(none)'}: {entry['detail']}")
    return reasons


def files_by_choice(ledger: Sequence[Row]) -> str | None:
    """How many rows have a clip with several files, and the first such row; None if there are none."""
    chosen = [entry for entry in ledger if entry["outcome"] == schema.BUILT and entry["detail"]]
    if not chosen:
        return None
    return f"one of several files was taken for {len(chosen)} rows; the first, id {chosen[0]['id']}: {chosen[0]['detail']}"


def why_no_row(
    counts: Counts, ledger: Sequence[Row], official_file: str, files: Sequence[str], media: MediaFolder, ledger_path: Path
) -> str:
    """The error of a build without any row: the most common reason, and what to do about it."""
    outcomes = sum(counts.values(), Counter[str]())
    [(main, _)] = outcomes.most_common(1)
    first = f"first: {first_reasons(ledger)[main]}"
    begin = f"no row could be built from {outcomes.total()} annotations ({outcomes_in_words(counts)})"
    given, end = " and ".join(files), f"{ledger_path} has the reason of every row"
    if outcomes.keys() == {schema.BAD_ANNOTATION}:
        return f"{begin}: {given} is not in the format of {official_file}; {first}; correct it, or give that file; {end}"
    if main == schema.MISSING_MEDIA:
        held = f"--media_dir {media.root} holds {len(media)} audio and video files"
        return f"{begin}; {first}; {held}; give the folder with the clips that the annotations name; {end}"
    if main in ANSWER_OUTCOMES:
        return f"{begin}; {first}; correct the answers in {given}; {end}"
    if main in CLIP_OUTCOMES:
        return f"{begin}; {first}; give clips in --media_dir {media.root} whose audio can be decoded; {end}"
    return f"{begin}; {first}; correct {given}; {end}"


def sample_row(folder: Path, splits: Sequence[str]) -> Row:
    """The first row that was built. `SHOWN_AUDIO` stands for its audio."""
    import pyarrow.parquet as pq

    for file in _data_files(folder, splits):
        with pq.ParquetFile(file) as content:
            if content.metadata.num_rows:
                columns = [name for name in content.schema_arrow.names if name != "audio"]
                row = next(content.iter_batches(batch_size=1, columns=columns)).to_pylist()[0]
                return {name: row.get(name, SHOWN_AUDIO) for name in content.schema_arrow.names}
    raise ValueError(f"no row in {folder}")


def _data_files(folder: Path, splits: Sequence[str]) -> list[Path]:
    return [file for split in splits for file in sorted((folder / "data").glob(f"{split}-*.parquet"))]


def write_card(
    folder: Path, template: str, front_matter: Row, features: Features, counts: Counts, overlaps: Sequence[str], **values: Any
) -> None:
    """
    Write the README.md: front matter, coverage, a sample row and what built it.

    Args:
        folder (`Path`): Holds the data files already.
        template (`str`): File name in `hub/templates/`.
        front_matter (`dict`): Of the card, without `dataset_info` and `configs`.
        features (`Features`): Columns.
        counts (`dict`): Counts of outcomes per split.
        overlaps (`Sequence[str]`): What the splits share, one sentence each.
        values: Further values that the template names.
    """
    import pyarrow.parquet as pq

    # `load_dataset` refuses a dataset with an empty split. The ledger has the rows of that split.
    splits = [split for split, count in counts.items() if count[schema.BUILT]]
    configs = {"default": {split: f"data/{split}-*.parquet" for split in splits}}
    files = _data_files(folder, splits)
    durations_s = [s for file in files for s in pq.read_table(file, columns=["duration_s"])["duration_s"].to_pylist()]
    text = render_card(
        template,
        coverage=coverage_table(counts),
        overlaps=overlaps,
        sample=as_json(sample_row(folder, splits)),
        min_duration_s=MIN_DURATION_S,
        repository=folder.resolve().name,
        split=splits[0],
        shortest_s=f"{min(durations_s):.1f}",
        longest_s=f"{max(durations_s):.1f}",
        **provenance(),
        **values,
    )
    info = dataset_info(folder, configs, {"default": features})
    write_dataset_card(folder, text, configs, dataset_info=info, **front_matter)

"""What the build of a dataset from videos prints, writes on its card, and says when no segment is left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sightsound.building.report import sample_row
from sightsound.building.segments import SEGMENT, VIDEO
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.hub.cards import (
    as_json,
    dataset_info,
    markdown_table,
    provenance,
    render_card,
    write_dataset_card,
)


Row = dict[str, Any]

CONFIGS = {"default": {"train": "data/train-*.parquet"}}
# Identifiers of the Hub for licences that are common among videos. Others go into the card's `license_name`.
HUB_LICENSES = ("cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "mit", "apache-2.0")


def _outcomes(folder: Path) -> dict[str, Counter[str]]:
    """Of the videos and of their segments."""
    counts: dict[str, Counter[str]] = {VIDEO: Counter(), SEGMENT: Counter()}
    for entry in parquet.read_parquet([folder / "ledger.parquet"], ["kind", "outcome"]):
        counts[entry["kind"]][entry["outcome"]] += 1
    return counts


def license_counts(folder: Path) -> Counter[str]:
    """Licence -> rows of a dataset of segments, or of questions about them."""
    files = sorted((folder / "data").glob("*.parquet"))
    return Counter(row["license"] for row in parquet.read_parquet(files, ["license"]))


def summary(folder: Path) -> str:
    """`12 segments of 3 videos (of 4 videos, 20 places looked at)`."""
    counts = _outcomes(folder)
    built, videos = (counts[kind][schema.BUILT] for kind in (SEGMENT, VIDEO))
    return f"{built} segments of {videos} videos ({counts[VIDEO].total()} videos, {counts[SEGMENT].total()} places looked at)"


def outcome_table(folder: Path) -> str:
    """How many videos and segments had which outcome, as a Markdown table."""
    counts = _outcomes(folder)
    rows = [
        [outcome, counts[VIDEO][outcome], counts[SEGMENT][outcome], meaning]
        for outcome, meaning in schema.VIDEO_OUTCOMES.items()
    ]
    totals = ["all", counts[VIDEO].total(), counts[SEGMENT].total(), ""]
    return "\n".join(markdown_table(["outcome", "videos", "segments", "meaning"], [*rows, totals]))


def why_no_segment(folder: Path, source: str) -> str:
    """The error of a build without any segment: the most common reasons, and what to do about them."""
    counts = _outcomes(folder)
    end = f"{folder / 'ledger.parquet'} has the reason of each"
    if not counts[VIDEO]:
        return f"{source} holds no videos; give --files or --video_column"
    shown = (counts[SEGMENT] or counts[VIDEO]).most_common(3)
    seen = ", ".join(f"{count} {outcome}" for outcome, count in shown)
    return f"no segment is left of {counts[VIDEO].total()} videos ({seen}); give videos with sound and a moving picture; {end}"


def check_licenses(folder: Path) -> None:
    """
    Raises:
        `InputError`: A row has no licence. Such a dataset is not published.
    """
    licenses = license_counts(folder)
    if licenses[schema.UNKNOWN]:
        seen = f"{licenses[schema.UNKNOWN]} of {licenses.total()} rows state no licence, so nothing was published"
        remedy = "give --license for them if you know it, or build again with the --license_column that has it"
        raise InputError(f"{seen}; {folder} is complete: {remedy}")


def write_card(folder: Path, segment_s: int) -> None:
    """
    Write the README.md of a dataset of segments.

    Args:
        folder (`Path`): Holds data and ledger already.
        segment_s (`int`): Length of a segment.
    """
    licenses = license_counts(folder)
    text = render_card(
        "dataset_videos.md",
        summary=summary(folder),
        coverage=outcome_table(folder),
        licenses="\n".join(markdown_table(["licence", "segments"], licenses.most_common())),
        num_unknown=licenses[schema.UNKNOWN],
        segment_s=segment_s,
        sample=as_json(sample_row(folder, ["train"])),
        repository=folder.resolve().name,
        split="train",
        **provenance(),
    )
    info = dataset_info(folder, CONFIGS, {"default": schema.segments_features()})
    front_matter: Row = {"pretty_name": "Segments of videos", "tags": ["audio", "video-segments", "sightsound-r1"]}
    write_dataset_card(folder, text, CONFIGS, dataset_info=info, **front_matter, **license_front_matter(licenses))


def license_front_matter(licenses: Counter[str]) -> Row:
    """Front matter for the licences of the rows."""
    [*names] = licenses
    if names == [schema.UNKNOWN]:
        return {"license": schema.UNKNOWN}
    if len(names) == 1 and names[0] in HUB_LICENSES:
        return {"license": names[0]}
    return {"license": "other", "license_name": "stated-in-each-row"}

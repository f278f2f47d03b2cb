"""What a source says of a video: the columns of a table, a JSON file beside the video, `metadata.csv`; and the presets."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, nearest
from sightsound.data.clips import VIDEO_NAME, without_extension
from sightsound.data.schema import UNKNOWN


Row = dict[str, Any]

PRESETS = Path(__file__).with_name("video_presets.yaml")
# Where no flag names a column: the names that published sets, metadata files and yt-dlp's `.info.json` use.
ID_COLUMNS = ("video_id", "youtube_id", "id")
LICENSE_COLUMNS = ("license", "licence")
AUTHOR_COLUMNS = ("author", "channel", "uploader")
# What a WebDataset calls the metadata of a sample; its names are looked for in there too.
NESTED = "json"
METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # with a column `file_name`, as `datasets` has it for folders of videos
MAX_ID_CHARACTERS = 100  # ids become file names


@dataclass(frozen=True)
class Columns:
    """
    Where a source says what: names of columns or paths into objects; None for the names above.

    `files` chooses files of the source; `license` is the licence of videos for which the source states none.
    """

    files: str | None = None
    video_column: str | None = None
    id_column: str | None = None
    license_column: str | None = None
    author_column: str | None = None
    license: str | None = None

    def known(self, row: Mapping[str, Any], name: str, common: Sequence[str]) -> str | None:
        """The value of the first of these columns that is not empty; None if all are empty."""
        given = getattr(self, name)
        paths = [given] if given else [*common, *(f"{NESTED}.{each}" for each in common)]
        found = (value_at(row, path) for path in paths)
        return next((str(value).strip() for value in found if isinstance(value, str | int) and str(value).strip()), None)

    def license_of(self, row: Mapping[str, Any]) -> str:
        return self.known(row, "license_column", LICENSE_COLUMNS) or UNKNOWN

    def author_of(self, row: Mapping[str, Any]) -> str:
        return self.known(row, "author_column", AUTHOR_COLUMNS) or UNKNOWN

    def id_of(self, row: Mapping[str, Any], name: str) -> tuple[str, int]:
        """
        The id of a video, and the second of it at which the file begins.

        Args:
            row (`Mapping`): What the source says of the video.
            name (`str`): Its file's name, for sources without ids.
        """
        given = without_extension(self.known(row, "id_column", ID_COLUMNS) or name).removesuffix(".json")
        of_clip = VIDEO_NAME.fullmatch(given)
        return (of_clip.group(1), int(of_clip.group(2))) if of_clip else (file_name_of(given), 0)


def file_name_of(video_id: str) -> str:
    """An id as a part of a file name. What cannot stand there is replaced, and a digest keeps two ids apart."""
    plain = re.sub(r"[^\w.-]", "_", video_id)[:MAX_ID_CHARACTERS].lstrip(".") or "_"
    return (
        plain if plain == video_id else f"{plain}-{hashlib.sha256(video_id.encode(errors='backslashreplace')).hexdigest()[:8]}"
    )


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value at `json.youtube_channel`; None where there is none. JSON in a text or in bytes is read."""
    value: Any = row
    for name in path.split("."):
        if isinstance(value, str | bytes):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def read_preset(name: str) -> Row:
    """
    The columns of a preset.

    Raises:
        `InputError`: There is none of that name.
    """
    import yaml

    presets: dict[str, Row] = yaml.safe_load(PRESETS.read_text(encoding="utf-8"))
    if name not in presets:
        guess = nearest(name, presets)
        raise InputError(f"--preset {name}: expected one of {', '.join(presets)}{f'; did you mean {guess}?' if guess else ''}")
    return presets[name]


def read_metadata(files: Iterable[tuple[str, Path]]) -> dict[str, Row]:
    """
    What metadata files say of the videos in their folders.

    Args:
        files (`Iterable`): Of each, its path in the source, and where it lies here.

    Returns:
        `dict`: Path of a video in the source -> its row.

    Raises:
        `InputError`: A file cannot be read.
    """
    known: dict[str, Row] = {}
    for path, file in files:
        folder = path.rpartition("/")[0]
        try:
            with open(file, encoding="utf-8-sig", newline="") as opened:
                lines = csv.DictReader(opened) if path.endswith(".csv") else map(json.loads, filter(str.strip, opened))
                rows = list(lines)
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{path} of the source cannot be read ({error}); correct it, or take it away") from error
        for row in rows:
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise InputError(
                    f"{path} of the source: expected a column file_name, found {', '.join(map(str, row)) or 'nothing'}"
                )
            known[f"{folder}/{name}" if folder else name] = row
    return known

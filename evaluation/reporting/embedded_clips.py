"""The clips inside a page of traces and answers: which ones fit, and which videos a browser can play."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.data.audio import stored_bytes
from sightsound.data.clips import Clip, MediaError, MediaFolder
from sightsound.data.frames import load_frames


if TYPE_CHECKING:
    from datasets import Dataset

# Of the containers that `MediaFolder` finds, those that browsers play.
VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}


@dataclass
class ClipSource:
    """A question's row in its dataset, and what identifies its clip: the file's digest and the start in the file."""

    dataset: Dataset
    position: int
    clip: tuple[str, float]


class EmbeddedClips:
    """
    The clips that a page contains, as base64 text. A clip is stored once, however many questions are about it.

    Args:
        media_dir (`str`, *optional*): Folder with the videos.
        budget (`int`): Bytes of base64 text for all clips together.
        video_name (`Callable` or `None`): A row -> the name of its video; None for a benchmark of sounds only.
    """

    def __init__(self, media_dir: str | None, budget: int, video_name: Callable[[dict[str, Any]], str] | None):
        self.embedded: list[dict[str, str]] = []
        self._media = MediaFolder(media_dir) if media_dir else None
        self._left = budget
        self._video_name = video_name
        self._number: dict[tuple[str, float], int] = {}

    def number_of(self, source: ClipSource) -> int | None:
        """Position of a question's clip in `embedded`, added if it fits; None after the first clip that did not fit."""
        if source.clip not in self._number and self._left > 0:
            row = source.dataset[source.position]
            clip = {"sound": base64.b64encode(stored_bytes(row["audio"])).decode(), **self._video(row)}
            size = len(clip["sound"]) + len(clip.get("video", ""))
            if size <= self._left:
                self._number[source.clip] = len(self.embedded)
                self.embedded.append(clip)
            self._left -= size  # negative means full: trying smaller clips would read every clip of a large dataset
        return self._number.get(source.clip)

    def _video(self, row: dict[str, Any]) -> dict[str, str]:
        """The video, or the reason why there is none."""
        if self._media is None:
            return {}
        if self._video_name is None:
            return {"no_video": "This benchmark has sounds only."}
        name = self._video_name(row)
        reasons = []
        for found in self._media.candidates(name, row["media_sha256"]):
            path = Path(found.path)
            if (reason := _why_not_shown(found)) is None:
                return {"video": base64.b64encode(path.read_bytes()).decode(), "video_type": VIDEO_TYPES[path.suffix.lower()]}
            reasons.append(reason)
        return {"no_video": next(iter(reasons), f"No video named {name} in the media folder.")}


def _why_not_shown(clip: Clip) -> str | None:
    """Why the page cannot show a file; None if it can."""
    path = Path(clip.path)
    if clip.max_duration_s is not None:
        return f"The video {path.name} is longer than the clip and is not cut here."
    if path.suffix.lower() not in VIDEO_TYPES:
        return f"Browsers do not show {path.name}."
    try:
        load_frames(clip.path, num_frames=2, max_pixels=64 * 64)
    except MediaError as error:
        return f"The video {path.name} cannot be shown: {error}"
    return None


def embedding_order(questions: Sequence[dict[str, Any]]) -> list[int]:
    """
    The order in which questions get their clips, so that a full page has clips of every kind.

    First the first question of every split, outcome and change of answers, then the second of each, and so on.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    turns = []
    for position, question in enumerate(questions):
        group = (question["split"], question.get("outcome"), question.get("change"))
        turns.append((seen[group], position))
        seen[group] += 1
    return [position for _, position in sorted(turns)]

"""
Clips: where they lie, what they are called, and how a media file is opened.

`containers` reads their streams, `audio` their sound, `frames` their pictures. Decoding is PyAV's (it brings its own
ffmpeg) and soundfile's, resampling torchaudio's. torchcodec is not used: it needs a system ffmpeg.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import InputError
from .schema import CORRUPT_MEDIA


if TYPE_CHECKING:
    from av.container import InputContainer

CLIP_DURATION_S = 10.0  # of every AVQA question (VGGSound's clip length)
# 11 characters of YouTube's alphabet and the start second; anything else could name a path outside the media folder.
VIDEO_NAME = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{6})")
# Of several files for one clip the first of these wins: a video has sound too, a sound has no video.
_VIDEO_EXTENSIONS = (
    *(".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".flv", ".f4v", ".3gp", ".3g2", ".ts", ".mts", ".m2ts", ".m2t"),
    *(".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".ogv", ".ogm", ".mxf", ".mj2", ".divx", ".rm", ".rmvb"),
)
_AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", ".opus", ".oga", ".mka", ".weba", ".wma", ".aiff", ".aif", ".aifc"),
    *(".amr", ".ac3", ".eac3", ".caf", ".au", ".snd", ".w64", ".rf64", ".mp2", ".mpga", ".m4b", ".m4r", ".spx", ".wv", ".ape"),
    *(".alac", ".dts", ".tta"),
)
MEDIA_EXTENSIONS = _VIDEO_EXTENSIONS + _AUDIO_EXTENSIONS


class MediaError(Exception):
    """
    A clip cannot be used.

    Args:
        outcome (`str`): The ledger's word for it (see `schema`).
        message (`str`): What was found in the file.
    """

    def __init__(self, outcome: str, message: str):
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class Clip:
    """A media file and the part of it that a question is about."""

    path: str
    start_s: float = 0.0
    max_duration_s: float | None = None


def video_name(row: dict[str, Any]) -> str:
    """The AVQA name of a row's clip."""
    return f"{row['video_id']}_{row['start_s']:06.0f}"


def _files(root: str) -> Iterator[tuple[str, str]]:
    """Folder and name of every file. Links to folders are followed, each folder once, and never to one that holds the root."""

    def identity(folder: str | Path) -> tuple[int, int]:
        status = os.stat(folder)
        return status.st_dev, status.st_ino

    seen = {identity(parent) for parent in Path(root).resolve().parents}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if identity(folder) in seen:
            subfolders.clear()
            continue
        seen.add(identity(folder))
        subfolders.sort()
        yield from ((folder, name) for name in sorted(names))


class MediaFolder:
    """
    Finds the clip of a name; the folder is listed once.

    Args:
        root (`str`): Searched at any depth, through links too; only file names are compared, so an annotation cannot leave it.
    """

    def __init__(self, root: str):
        if not Path(root).is_dir():
            raise InputError(f"--media_dir {root} is not a folder; give the one that holds the clips")
        self.root = root
        self._by_stem: dict[str, str] = {}
        rank: dict[str, int] = {}
        for folder, name in _files(root):
            stem, extension = os.path.splitext(name)
            if extension.lower() not in MEDIA_EXTENSIONS:
                continue
            if not os.path.isfile(os.path.join(folder, name)):  # a link to nothing must not hide the clip in another format
                continue
            preference = MEDIA_EXTENSIONS.index(extension.lower())
            if preference < rank.get(stem, len(MEDIA_EXTENSIONS)):
                rank[stem], self._by_stem[stem] = preference, os.path.join(folder, name)

    def find(self, name: str) -> Clip | None:
        """The clip of that name; of AVQA's `<id>_<6-digit start>` also `<id>_<start>`, or a part of the video `<id>`."""
        if name in self._by_stem:
            return Clip(self._by_stem[name])
        found = VIDEO_NAME.fullmatch(name)
        if found is None:
            return None
        video_id, start_s = found.group(1), int(found.group(2))
        if f"{video_id}_{start_s}" in self._by_stem:
            return Clip(self._by_stem[f"{video_id}_{start_s}"])
        if video_id in self._by_stem:
            return Clip(self._by_stem[video_id], float(start_s), CLIP_DURATION_S)
        return None


def open_media(path: str) -> InputContainer:
    """
    Open a media file, whatever its tags are written in.

    Raises:
        `MediaError`: It is none.
    """
    import av

    try:
        return av.open(path, metadata_errors="replace")  # tags that are not UTF-8 are no reason to lose the sound
    except (av.FFmpegError, OSError) as error:
        raise MediaError(CORRUPT_MEDIA, f"cannot be opened: {error}") from error


def sha256_of(path: str) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

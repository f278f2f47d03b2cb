"""
Clips: find their media files by name, and open a file. `audio.py` and `frames.py` decode them.

PyAV (which brings its own ffmpeg) and soundfile decode, torchaudio resamples. torchcodec is not used: it needs a system
ffmpeg.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.data.schema import CORRUPT_MEDIA, RowError


if TYPE_CHECKING:
    from av.container import InputContainer

CLIP_DURATION_S = 10.0  # of every AVQA clip; they come from VGGSound
# AVQA's names: a YouTube id (11 characters) and the start second.
VIDEO_NAME = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{6})")
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
# Of several files for one clip the first of these wins: video files have audio too, audio files have no video.
VIDEO_EXTENSIONS = (
    *(".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".flv", ".f4v", ".3gp", ".3g2", ".ts", ".mts", ".m2ts", ".m2t"),
    *(".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".ogv", ".ogm", ".mxf", ".mj2", ".divx", ".rm", ".rmvb"),
)
_AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", ".opus", ".oga", ".mka", ".weba", ".wma", ".aiff", ".aif", ".aifc"),
    *(".amr", ".ac3", ".eac3", ".caf", ".au", ".snd", ".w64", ".rf64", ".mp2", ".mpga", ".m4b", ".m4r", ".spx", ".wv", ".ape"),
    *(".alac", ".dts", ".tta"),
)
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS + _AUDIO_EXTENSIONS


class MediaError(RowError, InputError):
    """A clip that cannot be used. A stage with a ledger records its outcome; elsewhere it ends the script in one line."""


@dataclass(frozen=True)
class Clip:
    """A media file, and the part of it that a question is about."""

    path: str
    start_s: float = 0.0
    max_duration_s: float | None = None


def video_name(row: dict[str, Any]) -> str:
    """
    The name of a row's clip: AVQA's `<id>_<6-digit start>`, or `video_id` itself, which is then the file name of an own clip.

    A segment of a longer video says the name of its file itself. A file name can look like a YouTube id: such a row is AVQA's
    unless its clip is longer than AVQA's clips.
    """
    if row.get("segment"):
        return str(row["segment"])
    video_id, start_s = row["video_id"], row["start_s"]
    is_longer = start_s == 0 and row.get("duration_s", 0.0) > CLIP_DURATION_S + 0.1
    return f"{video_id}_{start_s:06.0f}" if YOUTUBE_ID.fullmatch(video_id) and not is_longer else video_id


def without_extension(name: str) -> str:
    """A name without the extension of a media file. Other dots are part of the name."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in MEDIA_EXTENSIONS else name


def files_below(root: str) -> Iterator[tuple[str, str]]:
    """Folder and name of every file. Links to folders are followed: each folder once, and none that contains the root."""

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


@dataclass(frozen=True)
class _File:
    """A media file: its folders below the media folder and its name, as Unicode NFC, and its path."""

    folders: tuple[str, ...]
    stem: str
    extension: str
    path: str


def _ends_with(folders: Sequence[str], wanted: Sequence[str]) -> bool:
    return not wanted or tuple(folders[-len(wanted) :]) == tuple(wanted)


class MediaFolder:
    """
    Finds the files of a clip by its name. The folder is listed once.

    Names are compared with the listing, so an annotation cannot name a file outside of the folder. A name may have an
    extension, and folders in front of it. Accented letters match in both Unicode forms (macOS stores letter and accent as
    two characters).

    Args:
        root (`str`): Searched at any depth, through links too.
    """

    def __init__(self, root: str):
        if not Path(root).is_dir():
            raise InputError(f"--media_dir {root} is not a folder; give the one that holds the clips")
        self.root = root
        self._by_stem: dict[str, list[_File]] = {}
        for folder, name in files_below(root):
            stem, extension = (unicodedata.normalize("NFC", part) for part in os.path.splitext(name))
            if extension.lower() not in MEDIA_EXTENSIONS:
                continue
            path = os.path.join(folder, name)
            if not os.path.isfile(path):  # a broken link must not hide the clip in another format
                continue
            below = unicodedata.normalize("NFC", os.path.relpath(folder, root))
            folders = () if below == "." else tuple(below.split(os.sep))
            self._by_stem.setdefault(stem, []).append(_File(folders, stem, extension.lower(), path))
        for files in self._by_stem.values():
            files.sort(key=lambda file: MEDIA_EXTENSIONS.index(file.extension))
        self._above = tuple(unicodedata.normalize("NFC", os.path.abspath(root)).split(os.sep))

    def __len__(self) -> int:
        return sum(map(len, self._by_stem.values()))

    def candidates(self, name: str, sha256: str | None = None) -> list[Clip]:
        """
        The files of a clip, in the order in which to try them: the first that can be used is the clip.

        They are the files of that name; for AVQA's `<id>_<6-digit start>` also `<id>_<start>`, and a part of the video `<id>`.

        Args:
            name (`str`): File name, with or without extension and folders.
            sha256 (`str`, *optional*): Of the file that a row's audio came from; it goes first.
        """
        clips = [Clip(file.path) for file in self._first_of_each(name)]
        found = VIDEO_NAME.fullmatch(name)
        if found is not None:
            video_id, start_s = found.group(1), int(found.group(2))
            clips += [Clip(file.path) for file in self._first_of_each(f"{video_id}_{start_s}")]
            clips += [Clip(file.path, float(start_s), CLIP_DURATION_S) for file in self._first_of_each(video_id)]
        elif YOUTUBE_ID.fullmatch(name):  # a longer file of AVQA's first seconds, see `video_name`
            clips += [Clip(file.path) for stem in (f"{name}_000000", f"{name}_0") for file in self._first_of_each(stem)]
        clips = list(dict.fromkeys(clips))
        if sha256 is not None and len(clips) > 1:
            clips.sort(key=lambda clip: sha256_of(clip.path) != sha256)
        return clips

    def namesakes(self, name: str, clip: Clip) -> list[str]:
        """Files in other folders that the name fits as well as the clip that was taken."""
        folders = self._parts(name)[:-1]
        stem, extension = (unicodedata.normalize("NFC", part) for part in os.path.splitext(os.path.basename(clip.path)))
        same = [file for file in self._by_stem.get(stem, []) if file.extension == extension.lower()]
        return [file.path for file in same if file.path != clip.path and _ends_with((*self._above, *file.folders), folders)]

    def _first_of_each(self, name: str) -> list[_File]:
        """Files of a name; only the first of those with equal name and extension in several folders."""
        files: dict[tuple[str, str], _File] = {}
        for file in self._named(name):
            files.setdefault((file.stem, file.extension), file)
        return list(files.values())

    def _named(self, name: str) -> list[_File]:
        *folders, last = self._parts(name)
        stem, extension = without_extension(last), os.path.splitext(last)[1].lower()
        files = [file for each in dict.fromkeys((last, stem)) for file in self._by_stem.get(each, [])]
        files = [file for file in files if _ends_with((*self._above, *file.folders), folders)]

        def is_second_choice(file: _File) -> tuple[bool, bool]:
            return file.stem + file.extension != stem + extension, bool(folders) and list(file.folders) != folders

        return sorted(files, key=is_second_choice)

    def _parts(self, name: str) -> list[str]:
        """Folders and file name. A name from Windows has backslashes between them."""
        name = unicodedata.normalize("NFC", name)
        if without_extension(name) not in self._by_stem:
            name = name.replace("\\", "/")
        return [part for part in name.split("/") if part != "."]


def open_media(path: str) -> InputContainer:
    """
    Open a media file.

    Raises:
        `MediaError`: ffmpeg cannot open the file as media.
    """
    import av

    try:
        return av.open(path, metadata_errors="replace")  # tags need not be UTF-8
    except (av.FFmpegError, OSError) as error:
        raise MediaError(CORRUPT_MEDIA, f"cannot be opened: {error}") from error


def sha256_of(path: str) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

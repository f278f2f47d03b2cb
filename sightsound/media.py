"""
Clips: find a stream, decode it, resample it, cut it; frames of a silent video.

Decoding is PyAV's (it brings its own ffmpeg) and soundfile's, resampling torchaudio's. torchcodec is not used: it needs a
system ffmpeg.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .cli import InputError
from .schema import CORRUPT_MEDIA, NO_AUDIO, NO_VIDEO, SAMPLING_RATE, TOO_SHORT


if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame
    from av.audio import AudioStream
    from av.container import InputContainer
    from av.video import VideoStream

CLIP_DURATION_S = 10.0  # of every AVQA question (VGGSound's clip length)
# AVQA's names: 11 characters of YouTube's alphabet and the start second.
VIDEO_NAME = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{6})")
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
# Of several files for one clip the first of these wins: a video has sound too, a sound has no video.
MEDIA_EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", ".opus")
# Decoded frames that are held at once: AVQA's ten seconds fit, MUSIC-AVQA's minute would take 600 MB at 640 x 360.
MAX_FRAMES_HELD = 640
# Quieter than the lowest bit of 16-bit audio: a track that exists but carries nothing.
SILENCE_PEAK = 1 / 32768
# A cut-off .mp4 may decode without an error up to where it was cut; whole ones end within a few frames of their header's word.
MAX_MISSING_S = 0.5
# The filter of ffmpeg's own resampler (libswresample's defaults: 32 taps, cutoff 0.97, Kaiser window with beta 9): mono and
# stereo sound as what others extract with ffmpeg (of more channels it weights each by its place). torchaudio's default lets
# more of the upper band through.
_LIKE_FFMPEG = {"lowpass_filter_width": 16, "rolloff": 0.97, "resampling_method": "sinc_interp_kaiser", "beta": 9.0}


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
    """
    The name of a row's clip: AVQA's `<id>_<6-digit start>`, or `video_id` itself, the file name of somebody's own clip.

    A file name can look like a YouTube id. Such a row is AVQA's unless it is longer than a part of a video would be.
    """
    video_id, start_s = row["video_id"], row["start_s"]
    is_longer = start_s == 0 and row.get("duration_s", 0.0) > CLIP_DURATION_S + 0.1
    return f"{video_id}_{start_s:06.0f}" if YOUTUBE_ID.fullmatch(video_id) and not is_longer else video_id


def without_extension(name: str) -> str:
    """A name without the extension of a media file; the dots of other names are their own."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in MEDIA_EXTENSIONS else name


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


@dataclass(frozen=True)
class _File:
    """A media file: its folders below the media folder and its name, composed as Unicode's NFC, and where it is."""

    folders: tuple[str, ...]
    stem: str
    extension: str
    path: str


def _ends_with(folders: Sequence[str], wanted: Sequence[str]) -> bool:
    return not wanted or tuple(folders[-len(wanted) :]) == tuple(wanted)


class MediaFolder:
    """
    Finds the files of a clip's name; the folder is listed once.

    Names are compared with what the listing found, so an annotation cannot leave the folder. A name may have an extension,
    and folders in front of it. Letters with accents match however they are encoded: macOS writes them in two parts.

    Args:
        root (`str`): Searched at any depth, through links too.
    """

    def __init__(self, root: str):
        if not Path(root).is_dir():
            raise InputError(f"--media_dir {root} is not a folder; give the one that holds the clips")
        self.root = root
        self._by_stem: dict[str, list[_File]] = {}
        for folder, name in _files(root):
            stem, extension = (unicodedata.normalize("NFC", part) for part in os.path.splitext(name))
            if extension.lower() not in MEDIA_EXTENSIONS:
                continue
            path = os.path.join(folder, name)
            if not os.path.isfile(path):  # a link to nothing must not hide the clip in another format
                continue
            below = unicodedata.normalize("NFC", os.path.relpath(folder, root))
            folders = () if below == "." else tuple(below.split(os.sep))
            self._by_stem.setdefault(stem, []).append(_File(folders, stem, extension.lower(), path))
        for files in self._by_stem.values():
            files.sort(key=lambda file: MEDIA_EXTENSIONS.index(file.extension))
        self._above = tuple(unicodedata.normalize("NFC", os.path.abspath(root)).split(os.sep))

    def __len__(self) -> int:
        return sum(map(len, self._by_stem.values()))

    def find(self, name: str) -> Clip | None:
        """The first of `candidates`."""
        return next(iter(self.candidates(name)), None)

    def candidates(self, name: str, sha256: str | None = None) -> list[Clip]:
        """
        The files of a clip in the order in which they are tried: one that cannot be used gives way to the next.

        They are the files of that name; for AVQA's `<id>_<6-digit start>` also `<id>_<start>`, and a part of the video `<id>`.

        Args:
            name (`str`): File name, with or without extension and folders.
            sha256 (`str`, *optional*): Of the file that a row's sound came from; where there are several, it goes first.
        """
        clips = [Clip(file.path) for file in self._first_of_each(name)]
        found = VIDEO_NAME.fullmatch(name)
        if found is not None:
            video_id, start_s = found.group(1), int(found.group(2))
            clips += [Clip(file.path) for file in self._first_of_each(f"{video_id}_{start_s}")]
            clips += [Clip(file.path, float(start_s), CLIP_DURATION_S) for file in self._first_of_each(video_id)]
        elif YOUTUBE_ID.fullmatch(name):  # a file of AVQA's first seconds that is longer than AVQA says, see `video_name`
            clips += [Clip(file.path) for stem in (f"{name}_000000", f"{name}_0") for file in self._first_of_each(stem)]
        clips = list(dict.fromkeys(clips))
        if sha256 is not None and len(clips) > 1:
            clips.sort(key=lambda clip: sha256_of(clip.path) != sha256)
        return clips

    def namesakes(self, name: str, clip: Clip) -> list[str]:
        """Files in other folders that the name means as well as the one that was taken."""
        folders = self._parts(name)[:-1]
        stem, extension = (unicodedata.normalize("NFC", part) for part in os.path.splitext(os.path.basename(clip.path)))
        same = [file for file in self._by_stem.get(stem, []) if file.extension == extension.lower()]
        return [file.path for file in same if file.path != clip.path and _ends_with((*self._above, *file.folders), folders)]

    def _first_of_each(self, name: str) -> list[_File]:
        """Files of a name; of those in several folders that share name and extension the first, for they may differ."""
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
        """Folders and file name. A name that was written on Windows has backslashes between them."""
        name = unicodedata.normalize("NFC", name)
        if without_extension(name) not in self._by_stem:
            name = name.replace("\\", "/")
        return [part for part in name.split("/") if part != "."]


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


def _check_whole(container: InputContainer, stream: AudioStream, last: AudioFrame | None) -> None:
    """Raise `MediaError` when an .mp4 ends before its header says. Of other formats few tell a stream's length for certain."""
    if "mp4" not in container.format.name or stream.duration is None or stream.time_base is None:
        return
    if last is None or last.time is None:
        return
    told_s = float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    ends_s = last.time + last.samples / last.sample_rate
    if ends_s < told_s - MAX_MISSING_S:
        raise MediaError(CORRUPT_MEDIA, f"the sound breaks off at {ends_s:.2f} s of {told_s:.2f} s")


def load_clip(
    path: str, sampling_rate: int = SAMPLING_RATE, start_s: float = 0.0, max_duration_s: float | None = None
) -> np.ndarray:
    """
    Decode the sound of one clip to mono float32, trimmed (never padded).

    Of several audio streams the one that ffmpeg calls best is taken (the one flagged as default, else the richest); where it
    stands in the file does not matter.

    Args:
        path (`str`): Local audio or video file.
        sampling_rate (`int`): Target rate, Hz.
        start_s (`float`): Seconds to skip at the beginning.
        max_duration_s (`float`, *optional*): Longer clips keep their first seconds.

    Returns:
        `np.ndarray`: shape `(num_samples,)`, nominally in [-1, 1]; lossy codecs overshoot.

    Raises:
        `MediaError`: No audio stream, or the file cannot be decoded to its end (or to the end of the part).
    """
    import av
    import torch
    from torchaudio.functional import resample

    with open_media(path) as container:
        stream = cast("AudioStream | None", container.streams.best("audio"))
        if stream is None:
            raise MediaError(NO_AUDIO, "the file has no audio stream")
        end_s = None if max_duration_s is None else start_s + max_duration_s
        chunks, num_samples, num_skipped, rate, kind = [], 0, 0, 0, None
        try:
            for frame in container.decode(stream):
                rate = rate or frame.sample_rate
                if frame.sample_rate != rate:
                    raise MediaError(CORRUPT_MEDIA, "the sampling rate changes on the way")
                if kind != (kind := (frame.format.name, frame.layout.name)):
                    # Sample format only; the rate is torchaudio's business. One takes frames of one kind.
                    to_float = av.AudioResampler(format="fltp")
                for converted in to_float.resample(frame):
                    mono = converted.to_ndarray().mean(axis=0)
                    num_samples += len(mono)
                    if num_samples <= round(start_s * rate):
                        num_skipped += len(mono)  # a part may begin hours into a video
                    else:
                        chunks.append(mono)
                if end_s is not None and num_samples >= end_s * rate:
                    break
            else:
                _check_whole(container, stream, frame if num_samples else None)
        except av.FFmpegError as error:
            raise MediaError(CORRUPT_MEDIA, f"decoding stopped: {error}") from error
    if num_samples == 0:
        raise MediaError(CORRUPT_MEDIA, "the audio stream holds no samples")
    if not chunks:
        raise MediaError(TOO_SHORT, f"the sound ends at {num_samples / rate:.2f} s, before {start_s:g} s")
    first, last = (None if s is None else round(s * rate) - num_skipped for s in (start_s, end_s))
    samples = np.concatenate(chunks)[first:last]
    if not np.isfinite(samples).all():
        raise MediaError(CORRUPT_MEDIA, "the sound holds samples that are not finite numbers")
    if rate == sampling_rate:
        return samples
    return resample(torch.from_numpy(samples), rate, sampling_rate, **_LIKE_FFMPEG).numpy()


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a decoded track carries nothing at all."""
    return float(np.abs(waveform).max(initial=0.0)) < SILENCE_PEAK


def encode_flac(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """Mono float32 -> 16-bit FLAC bytes; samples beyond full scale are clipped, as ffmpeg does."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_wav(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """Mono float32 -> 16-bit WAV bytes, the form that chat APIs take."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@dataclass(frozen=True)
class Heard:
    """What a model is given of a clip: `waveform` `(num_samples,)` at 16 kHz, `duration_s` before the cut, `heard_s` after."""

    waveform: np.ndarray
    duration_s: float
    heard_s: float


def decode_audio(audio: dict[str, Any], window_s: float | None = None) -> Heard:
    """
    Decode a row's audio column and cut it to what a model can take in, knowingly.

    Args:
        audio (`dict`): `{"bytes", "path"}`, as stored in an undecoded `datasets.Audio` column.
        window_s (`float`, *optional*): A feature extractor would drop everything after this without a word; callers store
            `heard_s` in their rows.

    Raises:
        `MediaError`: The bytes are not audio at 16 kHz.
    """
    import soundfile

    try:
        waveform, rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise MediaError(CORRUPT_MEDIA, f"the audio column cannot be decoded: {error}") from error
    if rate != SAMPLING_RATE or waveform.ndim != 1:
        raise MediaError(CORRUPT_MEDIA, f"expected mono at {SAMPLING_RATE} Hz, found shape {waveform.shape} at {rate} Hz")
    cut = waveform if window_s is None else waveform[: round(window_s * SAMPLING_RATE)]
    return Heard(cut, len(waveform) / SAMPLING_RATE, len(cut) / SAMPLING_RATE)


@dataclass(frozen=True)
class Frames:
    """A silent video: `pixels` uint8 `(num_frames, height, width, 3)`, sampled at `fps` frames per second."""

    pixels: np.ndarray
    fps: float

    def metadata(self) -> dict[str, float]:
        """
        What a Qwen2.5-VL processor is told of the clip, as `video_metadata`.

        transformers 5.17 cuts the seconds between two pairs of frames to an integer before it computes their positions:
        above 2 frames per second every frame would stand at time zero and their order be lost. So faster sampling is
        declared as 2 frames per second: order and proportions are kept, absolute time is stretched.
        """
        declared_fps = min(self.fps, 2.0)
        num_frames = len(self.pixels)
        return {"fps": declared_fps, "total_num_frames": num_frames, "duration": num_frames / declared_fps}


def load_frames(
    path: str, num_frames: int, max_pixels: int, start_s: float = 0.0, max_duration_s: float | None = None
) -> Frames:
    """
    Sample frames uniformly over a clip; the sound is not read.

    Args:
        path (`str`): Local video file.
        num_frames (`int`): At most this many; a shorter clip gives all it has, less one if odd (Qwen2.5-VL pairs frames).
        max_pixels (`int`): Larger frames are scaled down to this area, keeping the aspect ratio.
        start_s (`float`): Seconds to skip at the beginning.
        max_duration_s (`float`, *optional*): Seconds to sample from.

    Raises:
        `MediaError`: No video stream, or the file cannot be decoded.
    """
    end_s = float("inf") if max_duration_s is None else start_s + max_duration_s
    with open_media(path) as container:
        stream = _video_stream(container)
        scale = min(1.0, (max_pixels / max(1, stream.width * stream.height)) ** 0.5)
        width, height = (max(2, int(side * scale / 2) * 2) for side in (stream.width, stream.height))
        frames: list[VideoFrame] = []
        total = 0
        for frame in _frames_between(container, stream, start_s, end_s):
            total += 1
            if total > MAX_FRAMES_HELD:
                frames.clear()
            else:
                frames.append(frame)
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        if not total:
            raise MediaError(CORRUPT_MEDIA, f"no video frame after {start_s:g} s")
        count = max(1, min(num_frames, total) // 2 * 2)
        chosen = np.linspace(0, total - 1, count).round().astype(int).tolist()
        pixels = [frames[i].to_ndarray(format="rgb24", width=width, height=height) for i in chosen if frames]
    if not frames:
        with open_media(path) as container:  # of a long one it is known only now which frames are wanted
            again = _frames_between(container, _video_stream(container), start_s, end_s)
            wanted = set(chosen)
            pixels = [f.to_ndarray(format="rgb24", width=width, height=height) for i, f in enumerate(again) if i in wanted]
    return Frames(np.stack(pixels), fps=count / (total / rate))


def _video_stream(container: InputContainer) -> VideoStream:
    stream = cast("VideoStream | None", container.streams.best("video"))
    if stream is None:
        raise MediaError(NO_VIDEO, "the file has no video stream")
    stream.thread_type = "AUTO"
    return stream


def _frames_between(container: InputContainer, stream: VideoStream, start_s: float, end_s: float) -> Iterator[VideoFrame]:
    """Frames from `start_s` up to `end_s`, counted from the first one's time."""
    import av

    first_s = None
    try:
        for frame in container.decode(stream):
            time_s = frame.time if frame.time is not None else 0.0
            first_s = time_s if first_s is None else first_s
            if time_s - first_s >= end_s:
                return
            if time_s - first_s >= start_s:
                yield frame
    except av.FFmpegError as error:
        raise MediaError(CORRUPT_MEDIA, f"decoding stopped: {error}") from error


def sha256_of(path: str) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

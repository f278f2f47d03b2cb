"""
Cut one video into segments: where to look, what is sound and picture there, and what of it is kept.

A part of a video is reached by seeking, for sound and for picture. So a video costs as much as the places that are looked at,
whatever its length; only its sha256 reads the whole file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightsound.building import near_duplicates
from sightsound.building.near_duplicates import NUM_PICTURES, Fingerprint, dhash, sound_bits
from sightsound.building.segment_files import SEGMENT_MAX_FPS, SEGMENT_MAX_PIXELS, write_segment
from sightsound.building.sounds import MIN_DURATION_S
from sightsound.data import parquet, schema
from sightsound.data.audio import encode_flac, load_clip
from sightsound.data.clips import MediaError, open_media, sha256_of
from sightsound.data.containers import first_of_any, streams_of
from sightsound.data.frames import each_frame


if TYPE_CHECKING:
    from av.container import InputContainer
    from datasets import Features

Row = dict[str, Any]

VIDEO, SEGMENT = "video", "segment"
# Where to look in each of as many equal parts of a video as segments are wanted: the middle, then, where some were silent or
# still, two other places. Not the loudest, which would be music and applause in most videos, and would have to be searched for.
PLACES = (0.5, 0.0, 0.25)
# A video's last part is a segment if it is at least this share of one; a shorter video is one segment.
MIN_SHARE = 0.5
# A window this loud has sound: the noise of a quiet room with a good microphone lies near -70 dB of full scale, distant speech
# near -40. A segment needs as many such windows as a clip needs sound (`MIN_DURATION_S`); the rest of a sound that was cut has
# fewer.
SILENCE_DB, WINDOW_S = -60.0, 0.05
# Of 255, in the block that changes most between the compared pictures. A still picture that was encoded at a low bit rate
# changes by up to 2; a mouth that speaks, or leaves in the wind, by 10 and more.
STILL_CHANGE = 4.0
BLOCKS_HIGH, BLOCKS_WIDE = 32, 36  # multiples of what dHash needs


@dataclass(frozen=True)
class Video:
    """
    An input video as a file on this disk, and what is known about it.

    Args:
        path (`str`): The file.
        video_id (`str`): Unique name; part of file names.
        source (`str`): Where it comes from, for people.
        license, author (`str`): As the source states them; `schema.UNKNOWN` where it states none.
        offset_s (`int`): Second of the video `video_id` at which the file begins.
        is_temporary (`bool`): Delete the file when it has been read.
    """

    path: str
    video_id: str
    source: str
    license: str
    author: str
    offset_s: int = 0
    is_temporary: bool = False


@dataclass(frozen=True)
class CutSettings:
    """Length of a segment, distance between the beginnings of two, and how many of a video are wanted (None for all)."""

    segment_s: int
    hop_s: int
    segments_per_video: int | None


@dataclass
class Pictures:
    """What is kept of the frames of a segment while they pass: a few small grey pictures at even distances."""

    duration_s: float
    grey: list[np.ndarray] = field(default_factory=list)

    def watch(self, frames: Iterator[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray]]:
        """The same frames."""
        for time_s, pixels in frames:
            # The first frame at or after the middle of each of `NUM_PICTURES` parts.
            while len(self.grey) < NUM_PICTURES and time_s >= (len(self.grey) + 0.5) / NUM_PICTURES * self.duration_s:
                self.grey.append(_blocks(pixels))
            yield time_s, pixels

    def complete(self) -> list[np.ndarray]:
        """Repeats the last picture, where the video ends before the sound."""
        return self.grey + self.grey[-1:] * (NUM_PICTURES - len(self.grey))

    def change(self) -> float:
        """The change of the block that changes most, of 255."""
        stack = np.stack(self.complete())
        return float((stack.max(axis=0) - stack.min(axis=0)).max())

    def hashes(self) -> np.ndarray:
        shape = (near_duplicates.DHASH_HEIGHT, near_duplicates.DHASH_WIDTH)
        return np.array([dhash(_averaged(picture, *shape)) for picture in self.complete()], np.uint64)


def _averaged(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A smaller picture, each pixel the mean of its part of a larger one."""
    rows = np.linspace(0, picture.shape[0], height + 1).astype(int)
    columns = np.linspace(0, picture.shape[1], width + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(picture, rows[:-1], axis=0), columns[:-1], axis=1)
    return sums / (np.diff(rows)[:, None] * np.diff(columns)[None, :]).clip(1)


def _blocks(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    high, wide = (max(1, -(-least // size)) for least, size in zip((BLOCKS_HIGH, BLOCKS_WIDE), grey.shape, strict=True))
    grey = grey.repeat(high, axis=0).repeat(wide, axis=1)  # of tiny videos
    return _averaged(grey, BLOCKS_HIGH, BLOCKS_WIDE)


def part_features() -> Features:
    """What is stored of each place that was looked at, and of the video itself, until the build is joined."""
    from datasets import Features, Value

    texts = ("kind", "outcome", "detail", "video_id", "source", "license", "author", "video_sha256", "media_sha256", "file")
    binaries = ("flac", "sound", "pictures")
    return Features(
        {
            **{name: Value("string") for name in texts},
            "start_s": Value("float64"),
            "duration_s": Value("float64"),
            **{name: Value("binary") for name in binaries},
        }
    )


def candidate_starts(duration_s: float, settings: CutSettings) -> list[int]:
    """The places of a video to look at, in this order; with `segments_per_video` it ends early when enough are good."""
    shortest_s = MIN_SHARE * settings.segment_s
    count = max(1, int((duration_s - shortest_s) // settings.hop_s) + 1)
    wanted = settings.segments_per_video
    if wanted is None or count <= wanted:
        return [i * settings.hop_s for i in range(count)]
    order = [int((part + place) * count / wanted) for place in PLACES for part in range(wanted)]
    return [i * settings.hop_s for i in dict.fromkeys(order)]


def duration_of(container: InputContainer) -> float:
    """
    Seconds that have both sound and picture, as the header says; without a header, all packets are read, and not decoded.

    Raises:
        `MediaError`: There is no audio stream, or no video stream.
    """
    import av

    streams = []
    for kind, outcome in (("audio", schema.NO_AUDIO), ("video", schema.NO_VIDEO)):
        found = streams_of(container, kind)  # type: ignore[arg-type]
        if not found:
            raise MediaError(outcome, f"the file has no {kind} stream")
        streams.append(found[0])
    begins_s = first_of_any(container)
    lengths = [float(each.duration * each.time_base) for each in streams if each.duration and each.time_base is not None]
    if container.duration:
        lengths.append(container.duration / av.time_base)
    if lengths:
        return min(lengths)
    last_s = 0.0
    for packet in container.demux(*streams):
        if packet.pts is not None and packet.time_base is not None:
            last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return last_s - begins_s


def sound_s(waveform: np.ndarray) -> float:
    """Seconds of a waveform that are louder than `SILENCE_DB`."""
    size = round(WINDOW_S * schema.SAMPLING_RATE)
    windows = waveform[: len(waveform) // size * size].reshape(-1, size)
    loudness_db = 20 * np.log10(np.sqrt((windows.astype(np.float64) ** 2).mean(axis=1)) + 1e-10)
    return float((loudness_db >= SILENCE_DB).sum() * WINDOW_S)


def _cut(path: str, start_s: int, settings: CutSettings, target: Path) -> Row:
    """
    One segment: its file is written, and its columns are returned.

    Raises:
        `MediaError`: It has no sound, no picture that moves, or cannot be decoded.
    """
    import av

    try:
        waveform = load_clip(path, start_s=float(start_s), max_duration_s=float(settings.segment_s))
        duration_s = len(waveform) / schema.SAMPLING_RATE
        if duration_s < MIN_DURATION_S:
            raise MediaError(schema.TOO_SHORT, f"{duration_s:.3f} s of sound, expected at least {MIN_DURATION_S:g} s")
        if (heard_s := sound_s(waveform)) < MIN_DURATION_S:
            limit = f"louder than {SILENCE_DB:.0f} dB, expected {MIN_DURATION_S:g} s"
            raise MediaError(schema.SILENT, f"{heard_s:.2f} s are {limit}")
        pictures = Pictures(duration_s)
        frames = each_frame(path, SEGMENT_MAX_PIXELS, SEGMENT_MAX_FPS, float(start_s), duration_s)
        write_segment(target, pictures.watch(frames), waveform)
    except (av.FFmpegError, ValueError, MemoryError) as error:  # of PyAV and numpy, for malformed streams
        if (number := getattr(error, "errno", None)) in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number), str(target)) from error
        raise MediaError(schema.CORRUPT_MEDIA, f"cannot be decoded: {error or type(error).__name__}") from error
    if not pictures.grey:
        raise MediaError(schema.NO_VIDEO, "there is no picture in this part")
    if (change := pictures.change()) < STILL_CHANGE:
        raise MediaError(schema.STILL_PICTURE, f"no block of the picture changes by more than {change:.1f} of 255")
    sound, hashes = Fingerprint(*sound_bits(waveform), pictures.hashes()).to_bytes()
    columns = {"duration_s": duration_s, "flac": encode_flac(waveform), "media_sha256": sha256_of(str(target))}
    return columns | {"sound": sound, "pictures": hashes, "file": target.name}


def _segments(video: Video, settings: CutSettings, part: Path) -> Iterator[Row]:
    """
    What was found at the places of a video that were looked at.

    Raises:
        `MediaError`: The video cannot be opened, has no sound or no picture, or is too short.
    """
    import av

    try:
        with open_media(video.path) as container:
            duration_s = duration_of(container)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(schema.CORRUPT_MEDIA, f"cannot be opened: {error or type(error).__name__}") from error
    if duration_s < MIN_DURATION_S:
        raise MediaError(schema.TOO_SHORT, f"the video lasts {duration_s:.3f} s, expected {MIN_DURATION_S:g} s")
    num_good = 0
    for start_s in candidate_starts(duration_s, settings):
        target = part.with_name(f"{part.stem}_{start_s:06d}.mp4")
        row = {"kind": SEGMENT, "start_s": float(video.offset_s + start_s)}
        try:
            row |= {"outcome": schema.BUILT} | _cut(video.path, start_s, settings, target)
        except MediaError as error:
            target.unlink(missing_ok=True)
            row |= {"outcome": error.outcome, "detail": parquet.storable(str(error))}
        yield row
        num_good += row["outcome"] == schema.BUILT
        if num_good == settings.segments_per_video:
            break


def _rows(video: Video, settings: CutSettings, part: Path) -> Iterator[Row]:
    """The places of a video that were looked at, then the video itself."""
    shared = {"video_id": video.video_id, "source": video.source, "license": video.license, "author": video.author}
    empty = dict.fromkeys(part_features()) | shared
    outcome, detail = schema.NO_SEGMENT, None
    try:
        empty["video_sha256"] = sha256_of(video.path)
        for row in _segments(video, settings, part):
            outcome = schema.BUILT if row["outcome"] == schema.BUILT else outcome
            yield empty | row
    except MediaError as error:
        outcome, detail = error.outcome, parquet.storable(str(error))
    except PermissionError as error:
        outcome, detail = schema.CORRUPT_MEDIA, f"cannot be read: {error.strerror}"
    yield empty | {"kind": VIDEO, "outcome": outcome, "detail": detail}


def cut_video(video: Video, settings: CutSettings, part: Path) -> None:
    """
    Cut a video, and write what was found: the part, a parquet file of `part_features`, and beside it a file per segment.

    The part is written last and at once, so a video whose part is there is done.
    """
    parquet.write_parquet(_rows(video, settings, part), part_features(), part)
    if video.is_temporary:
        Path(video.path).unlink(missing_ok=True)


def write_without_segments(video: Video, part: Path, outcome: str, detail: str) -> None:
    """Write the part of a video that was not opened, or crashed the process that opened it."""
    shared = {"video_id": video.video_id, "source": video.source, "license": video.license, "author": video.author}
    row = dict.fromkeys(part_features()) | shared | {"kind": VIDEO, "outcome": outcome, "detail": detail}
    parquet.write_parquet([row], part_features(), part)
    if video.is_temporary:
        Path(video.path).unlink(missing_ok=True)

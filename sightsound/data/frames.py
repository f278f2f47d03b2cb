"""Decode the video of a clip: `load_frames` samples frames evenly, `each_frame` gives all; upright and scaled down."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sightsound.data.clips import Clip, MediaError, MediaFolder, open_media, video_name
from sightsound.data.containers import (
    MIN_SEEK_S,
    all_packets,
    check_complete,
    check_decoder,
    first_of_any,
    sought_packets,
    streams_of,
)
from sightsound.data.schema import CORRUPT_MEDIA, MISSING_MEDIA, NO_VIDEO


if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video import VideoStream

# Pixels of decoded frames to keep: the ten seconds of AVQA at 640 x 360 fit. MUSIC-AVQA's minute would take 600 MB.
MAX_PIXELS_HELD = 640 * 640 * 360
# A pixel aspect ratio beyond this comes from a broken header.
_MAX_PIXEL_ASPECT = 4


@dataclass(frozen=True)
class Frames:
    """A silent video: `pixels` uint8 `(num_frames, height, width, 3)`, sampled at `fps` frames per second."""

    pixels: np.ndarray
    fps: float

    def metadata(self) -> dict[str, float]:
        """
        The `video_metadata` for a Qwen2.5-VL processor.

        transformers 5.17 truncates the seconds between two pairs of frames to an integer before it computes positions: above
        2 frames per second, all frames would be at time zero and lose their order. So faster sampling is declared as 2
        frames per second. This keeps order and proportions, and stretches absolute time.
        """
        declared_fps = min(self.fps, 2.0)
        num_frames = len(self.pixels)
        return {"fps": declared_fps, "total_num_frames": num_frames, "duration": num_frames / declared_fps}


def frames_of_first(clips: Sequence[Clip], num_frames: int, max_pixels: int) -> Frames:
    """
    Frames of the first file that has any; for the other arguments see `load_frames`.

    Args:
        clips (`Sequence[Clip]`): At least one, from `MediaFolder.candidates`.

    Raises:
        `MediaError`: No file has a video that can be decoded.
    """
    failures: list[MediaError] = []
    for clip in clips:
        try:
            return load_frames(clip.path, num_frames, max_pixels, clip.start_s, clip.max_duration_s)
        except MediaError as error:
            failures.append(error)
    # A broken video is a better reason than an audio file that has no video.
    raise next((failure for failure in failures if failure.outcome != NO_VIDEO), failures[0])


def frames_of_row(row: Mapping[str, Any], media: MediaFolder, num_frames: int, max_pixels: int) -> Frames:
    """
    Frames of a row's clip. Of several files the one that its sound is from comes first, and the first with frames counts.

    Args:
        row (`Mapping`): Of avqa-audio, or of segments.
        media (`MediaFolder`): Has the videos.

    Raises:
        `MediaError`: There is no such file, or none with a video that can be decoded.
    """
    name = video_name(dict(row))
    clips = media.candidates(name, row["media_sha256"])
    if not clips:
        raise MediaError(MISSING_MEDIA, f"no clip named {name}.*")
    return frames_of_first(clips, num_frames, max_pixels)


def load_frames(
    path: str, num_frames: int, max_pixels: int, start_s: float = 0.0, max_duration_s: float | None = None
) -> Frames:
    """
    Sample frames uniformly over a clip, without reading its audio.

    If a video stream cannot be decoded, the next one is tried. Time counts from the first video frame or audio sample of the
    file, as in `audio.load_clip`.

    Args:
        path (`str`): Local video file.
        num_frames (`int`): At most this many, and an even number (Qwen2.5-VL pairs frames). A short clip has fewer.
        max_pixels (`int`): Larger frames are scaled down to this area, keeping the aspect ratio.
        start_s (`float`): Seconds to skip at the beginning.
        max_duration_s (`float`, *optional*): Seconds to sample from.

    Raises:
        `MediaError`: No video stream, or the file cannot be decoded.
    """
    end_s = float("inf") if max_duration_s is None else start_s + max_duration_s
    reason = MediaError(NO_VIDEO, "the file has no video stream")
    for attempt in itertools.count():
        with open_media(path) as container:
            streams = streams_of(container, "video")
            if attempt == len(streams):
                break
            stream = cast("VideoStream", streams[attempt])
            try:
                return _sampled(
                    _Video(container, path, stream, first_of_any(container)), num_frames, max_pixels, start_s, end_s
                )
            except MediaError as error:
                reason = reason if attempt else error
    raise reason


def each_frame(
    path: str, max_pixels: int, max_fps: float, start_s: float, max_duration_s: float
) -> Iterator[tuple[float, np.ndarray]]:
    """
    The frames of a part of a video, upright and scaled down as by `load_frames`, one in memory at a time.

    Args:
        path, max_pixels, start_s, max_duration_s: As for `load_frames`; the best video stream is read.
        max_fps (`float`): Of a faster video, frames are left out.

    Yields:
        `tuple`: Seconds after `start_s`, and pixels, uint8 `(height, width, 3)`.

    Raises:
        `MediaError`: No video stream, or the file cannot be decoded.
    """
    with open_media(path) as container:
        streams = streams_of(container, "video")
        if not streams:
            raise MediaError(NO_VIDEO, "the file has no video stream")
        stream = cast("VideoStream", streams[0])
        check_decoder(stream)
        width, height = _size(stream, max_pixels)
        video = _Video(container, path, stream, first_of_any(container))
        next_s = start_s
        for time_s, frame in video.between(start_s, start_s + max_duration_s):
            if time_s >= next_s:
                # On a grid of `max_fps`, less half a frame of this video: its times need not fall on the grid.
                next_s = max(next_s + 1 / max_fps, time_s + 0.5 / max_fps)
                yield time_s - start_s, _turned(frame.to_ndarray(format="rgb24", width=width, height=height), frame)


@dataclass(frozen=True)
class _Video:
    """One video stream of a file; `begins_s` is the start of the clip on its clock."""

    container: InputContainer
    path: str
    stream: VideoStream
    begins_s: float

    def rate(self) -> float:
        return float(self.stream.average_rate or self.stream.guessed_rate or 1)

    def between(self, start_s: float, end_s: float) -> Iterator[tuple[float, VideoFrame]]:
        """Frames of the clip from `start_s` up to `end_s`, with their times."""
        if start_s < MIN_SEEK_S:
            yield from self._cut(self._decoded(all_packets(self.container, self.stream.index)), start_s, end_s)
            return
        sought = self._decoded(sought_packets(self.container, self.stream.index, self.begins_s + start_s))
        first = next(sought, None)
        if first is not None and first[0] <= start_s:
            yield from self._cut(itertools.chain([first], sought), start_s, end_s)
            return
        with open_media(self.path) as container:
            yield from self._cut(self._decoded(all_packets(container, self.stream.index)), start_s, end_s)

    def _cut(
        self, frames: Iterator[tuple[float, VideoFrame]], start_s: float, end_s: float
    ) -> Iterator[tuple[float, VideoFrame]]:
        ends_s = float("inf")
        for time_s, frame in frames:
            if time_s >= end_s:
                return
            if time_s >= start_s:
                yield time_s, frame
            ends_s = time_s + max(1 / self.rate(), float((frame.duration or 0) * (frame.time_base or 0)))
        check_complete(self.container, self.path, self.stream.index, ends_s + self.begins_s)

    def _decoded(self, packets: Iterator[Packet]) -> Iterator[tuple[float, VideoFrame]]:
        import av

        time_s, clock_s = float("-inf"), 0.0
        try:
            for packet in packets:
                for frame in packet.decode():
                    last_s = time_s
                    time_s = max(0.0, last_s + 1 / self.rate()) if frame.time is None else frame.time - self.begins_s + clock_s
                    if time_s < last_s:  # the clock was reset where files were joined
                        clock_s += last_s + 1 / self.rate() - time_s
                        time_s = last_s + 1 / self.rate()
                    yield time_s, frame
        except av.FFmpegError as error:
            raise MediaError(CORRUPT_MEDIA, f"decoding the video stopped: {error}") from error


def _sampled(video: _Video, num_frames: int, max_pixels: int, start_s: float, end_s: float) -> Frames:
    stream = video.stream
    check_decoder(stream)
    width, height = _size(stream, max_pixels)

    def upright(frame: VideoFrame) -> np.ndarray:
        return _turned(frame.to_ndarray(format="rgb24", width=width, height=height), frame)

    held: list[VideoFrame] = []
    times: list[float] = []
    for time_s, frame in video.between(start_s, end_s):
        times.append(time_s)
        if len(times) * stream.width * stream.height > MAX_PIXELS_HELD:
            held.clear()
        else:
            held.append(frame)
    if not times:
        raise MediaError(CORRUPT_MEDIA, f"no video frame after {start_s:g} s")
    count = max(1, min(num_frames, len(times)) // 2 * 2)
    chosen, duration_s = _evenly(np.array(times), count, video.rate())
    if held:
        pixels = {i: upright(held[i]) for i in set(chosen)}
    else:
        with open_media(video.path) as container:  # a second pass: only now are the wanted frames known
            again = replace(video, container=container).between(start_s, end_s)
            pixels = {i: upright(frame) for i, (_, frame) in enumerate(again) if i in set(chosen)}
    return Frames(np.stack([pixels[i] for i in chosen]), fps=count / duration_s)


def _evenly(times: np.ndarray, count: int, rate: float) -> tuple[list[int], float]:
    """Indices of the frames to take, given the times of all, and their total duration in seconds."""
    total = len(times)
    chosen = np.linspace(0, total - 1, count).round().astype(int)
    duration_s = total / rate
    gap_s = (times[-1] - times[0]) / max(1, total - 1)
    stray_s = np.abs(times - np.linspace(times[0], times[-1], total)).max()
    if total > 1 and gap_s > 0 and (stray_s > gap_s or not 0.9 < gap_s * rate < 1.1):
        # A variable frame rate, as from telephones and screen recordings: take what is shown at evenly spaced times.
        shown = np.searchsorted(times, np.linspace(times[0], times[-1], count) + gap_s / 1000, side="right") - 1
        chosen, duration_s = (chosen if stray_s <= gap_s else shown), times[-1] - times[0] + gap_s
    return chosen.tolist(), float(duration_s)


def _size(stream: VideoStream, max_pixels: int) -> tuple[int, int]:
    """Width and height to scale a frame to, with square pixels, before it is turned."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        aspect = 1.0
    shape = (stream.width * aspect, stream.height)
    scale = min(1.0, (max_pixels / max(1, shape[0] * shape[1])) ** 0.5)
    width, height = (max(2, int(side * scale / 2) * 2) for side in shape)
    return width, height


def _turned(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Rotate or mirror a frame as the display matrix in its side data says. Phones store frames unrotated."""
    data = cast("bytes | None", frame.side_data.get("DISPLAYMATRIX"))
    if data is None:
        return pixels
    across_x, across_y, _, down_x, down_y, *_ = np.frombuffer(data, np.int32).tolist()
    if abs(across_y) > abs(across_x):  # columns become rows
        pixels, to_right, to_bottom = pixels.transpose(1, 0, 2), down_x, across_y
    else:
        to_right, to_bottom = across_x, down_y
    return pixels[:: -1 if to_bottom < 0 else 1, :: -1 if to_right < 0 else 1]

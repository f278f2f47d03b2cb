"""One audio stream of a media file: its samples, placed where their time stamps say, as a whole or between two times."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from sightsound.data.clips import MediaError, open_media
from sightsound.data.containers import MIN_SEEK_S, all_packets, check_complete, sought_packets
from sightsound.data.schema import CORRUPT_MEDIA, TOO_SHORT


if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet

# Time stamps of Vorbis are off by up to half a block (21 ms), those of most containers by their rounding. Only larger
# differences are gaps or overlaps.
MAX_STRAY_S = 0.04
# One odd time stamp is no gap: this many frames in a row have to agree.
_FRAMES_THAT_AGREE = 4
# A clock that jumps back, or further ahead than this, was reset where files were joined: the audio continues without a gap.
_MAX_GAP_S = 3600.0
# Decode this much before the wanted part: the decoder needs it to start correctly, and its time stamps locate the part.
_PRE_ROLL_S = 2.0


@dataclass(frozen=True)
class Block:
    """Decoded mono samples, and their start (seconds into the clip, None if unknown)."""

    time_s: float | None
    samples: np.ndarray


@dataclass
class Track:
    """One audio stream of a file; `begins_s` is the start of the clip on its clock, `rate` and `ends_s` are set by decoding."""

    container: InputContainer
    path: str
    index: int
    begins_s: float
    time_base_s: float
    rate: int = 0
    ends_s: float = 0.0

    def blocks(self) -> Iterator[Block]:
        """The whole stream."""
        block = None
        for block in self._decoded(all_packets(self.container, self.index)):
            yield block
        if block is None:
            raise MediaError(CORRUPT_MEDIA, "the audio stream holds no samples")

    def blocks_from(self, time_s: float) -> Iterator[Block]:
        """The stream from a block at or before a time of the clip; empty if the file cannot be sought."""
        sought_s = time_s + self.begins_s
        return self._decoded(sought_packets(self.container, self.index, sought_s), sought_s + _PRE_ROLL_S / 2)

    def _decoded(self, packets: Iterator[Packet], errors_until_s: float = float("-inf")) -> Iterator[Block]:
        """Mono audio of packets. Errors up to a time are ignored: after a seek, the first packets may need earlier ones."""
        import av

        kind = None
        for packet in packets:
            try:
                frames = cast("list[AudioFrame]", packet.decode())
            except av.FFmpegError as error:
                if packet.pts is not None and packet.pts * self.time_base_s < errors_until_s:
                    continue
                raise MediaError(CORRUPT_MEDIA, f"decoding the sound stopped: {error}") from error
            for frame in frames:
                self.rate = self.rate or frame.sample_rate
                if frame.sample_rate != self.rate:
                    raise MediaError(CORRUPT_MEDIA, "the sampling rate changes on the way")
                if kind != (kind := (frame.format.name, frame.layout.name)):
                    # Converts the sample format only; the rate is changed later. One converter takes frames of one kind.
                    # Interleaved, because PyAV reads planar frames of eight or more channels beyond their end.
                    to_float = av.AudioResampler(format="flt")
                time_s = None if frame.time is None else frame.time - self.begins_s
                if frame.time is not None:
                    self.ends_s = frame.time + frame.samples / frame.sample_rate
                for converted in to_float.resample(frame):
                    samples = converted.to_ndarray().reshape(-1, converted.layout.nb_channels).mean(axis=1)
                    if not np.isfinite(samples).all():
                        raise MediaError(CORRUPT_MEDIA, "the sound holds samples that are not finite numbers")
                    yield Block(time_s, samples)


def place_by_time(blocks: Iterator[Block], track: Track, position: int) -> Iterator[np.ndarray]:
    """Gapless audio: silence where the time stamps leave a gap, and nothing twice where they overlap."""
    waiting: deque[Block] = deque()
    clock_s = 0.0  # added to the time stamps since the last reset of the clock
    last_s = float("-inf")

    def shift() -> int:
        """By how many samples the next block is late (negative: early). 0 if the waiting blocks disagree."""
        if waiting[0].time_s is None:
            return 0
        expected, strays = position, []
        for block in waiting:
            if block.time_s is not None:
                strays.append(round((block.time_s + clock_s) * track.rate) - expected)
            expected += len(block.samples)
        allowed = MAX_STRAY_S * track.rate
        if not (all(stray > allowed for stray in strays) or all(stray < -allowed for stray in strays)):
            return 0
        return min(strays, key=abs)

    def settled(at_least: int) -> Iterator[np.ndarray]:
        nonlocal position, clock_s, last_s
        while len(waiting) >= at_least:
            samples_off = shift()
            time_s = waiting[0].time_s
            went_back = samples_off < 0 and time_s is not None and time_s < last_s
            if went_back or samples_off > _MAX_GAP_S * track.rate:
                clock_s -= samples_off / track.rate
                samples_off = 0
            for missing in range(samples_off, 0, -track.rate):
                silence = np.zeros(min(missing, track.rate), np.float32)
                position += len(silence)
                yield silence
            samples = waiting.popleft().samples[max(0, -samples_off) :]
            position += len(samples)
            last_s = last_s if time_s is None else time_s
            yield samples

    for block in blocks:
        waiting.append(block)
        yield from settled(at_least=_FRAMES_THAT_AGREE)
    yield from settled(at_least=1)


def _stray(blocks: list[Block], rate: int) -> float:
    """
    The smallest difference, in samples, between a block's time stamp and the number of samples before it.

    The smallest, because time stamps tend to be late.
    """
    count, strays = 0, []
    for block in blocks:
        if block.time_s is not None:
            strays.append(block.time_s * rate - count)
        count += len(block.samples)
    return min(strays, default=0.0)


def _from_middle(track: Track, start_s: float) -> tuple[int, Iterator[np.ndarray]] | None:
    """
    The samples from some time before `start_s`, the same as decoding from the start gives.

    Returns:
        The position of the first sample in the clip, and the samples; None if the file cannot be sought.
    """
    head = _until(track.blocks(), _PRE_ROLL_S)
    blocks = track.blocks_from(max(0.0, start_s - _PRE_ROLL_S))
    lead = _until(blocks, start_s)[1:]  # the first one after a seek may be incomplete
    if not head or not lead or lead[0].time_s is None or lead[0].time_s > start_s:
        return None
    offset, begins = _stray(head, track.rate), 0
    if abs(offset) > MAX_STRAY_S * track.rate:  # the whole track starts late: keep that delay
        offset, begins = 0.0, round(_stray(head[:_FRAMES_THAT_AGREE], track.rate))
    estimate = _stray(lead, track.rate) - offset
    position = round(estimate)
    sizes = {len(block.samples) for block in head[1:-1] + lead[:-1]}
    if len(sizes) == 1:
        # Blocks of one size lie on a grid; rounded time stamps (in Matroska to 1 ms) are only near it.
        size, origin = sizes.pop(), begins + len(head[0].samples)
        on_grid = origin + size * round((estimate - origin) / size)
        if abs(on_grid - estimate) <= min(size / 4, 2 + 2 * track.time_base_s * track.rate):
            position = on_grid
    return position, place_by_time(itertools.chain(lead, blocks), track, position)


def _until(blocks: Iterator[Block], time_s: float) -> list[Block]:
    """The blocks up to the first one that begins at or after a time, that one included."""
    taken = []
    for block in blocks:
        taken.append(block)
        if block.time_s is not None and block.time_s >= time_s:
            break
    return taken


def samples_between(track: Track, start_s: float, end_s: float | None) -> Iterator[np.ndarray]:
    """The samples of a track between two times."""
    if start_s < MIN_SEEK_S:
        yield from _cut(track, 0, place_by_time(track.blocks(), track, 0), start_s, end_s)
    elif (sought := _from_middle(track, start_s)) is not None:
        yield from _cut(track, *sought, start_s, end_s)
    else:
        with open_media(track.path) as container:
            anew = replace(track, container=container)
            yield from _cut(anew, 0, place_by_time(anew.blocks(), anew, 0), start_s, end_s)


def _cut(
    track: Track, position: int, chunks: Iterator[np.ndarray], start_s: float, end_s: float | None
) -> Iterator[np.ndarray]:
    """The samples between two times, from chunks of which the first begins at a position."""
    for chunk in chunks:
        first = round(start_s * track.rate) - position
        last = None if end_s is None else round(end_s * track.rate) - position
        position += len(chunk)
        if first < len(chunk):  # a part may begin hours into a video
            yield chunk[max(0, first) : last]
        if last is not None and last <= len(chunk):
            return
    check_complete(track.container, track.path, track.index, track.ends_s)
    if position <= round(start_s * track.rate):
        raise MediaError(TOO_SHORT, f"the sound ends at {position / track.rate:.2f} s, before {start_s:g} s")

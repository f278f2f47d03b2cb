"""The sound of a clip: decode it, put it where its time stamps say, cut it, resample it; the same for stored audio columns."""

from __future__ import annotations

import io
import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sightsound.data.clips import MediaError, open_media
from sightsound.data.containers import MIN_SEEK_S, all_packets, check_whole, first_of_any, sought_packets, streams_of
from sightsound.data.resampling import resample
from sightsound.data.schema import CORRUPT_MEDIA, NO_AUDIO, SAMPLING_RATE, TOO_SHORT


if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet

# Quieter than the lowest bit of 16-bit audio: a track that exists but carries nothing.
SILENCE_PEAK = 1 / 32768
# Time stamps of Vorbis stray by half a block (21 ms), those of most containers by their rounding. Only what is further off
# than this is a hole or an overlap.
MAX_STRAY_S = 0.04
# One odd time stamp is no hole; so many frames in a row have to agree.
_FRAMES_THAT_AGREE = 4
# A clock that jumps further ahead, or back, was set anew (files that were joined): the sound simply goes on.
_MAX_HOLE_S = 3600.0
# Decoded before the part that is wanted, since decoders need some sound to warm up, and to know where a frame stands.
_PRE_ROLL_S = 2.0


@dataclass(frozen=True)
class _Block:
    """Mono samples as they were decoded, and when they begin (seconds into the clip, None if unknown)."""

    time_s: float | None
    samples: np.ndarray


@dataclass
class _Track:
    """One audio stream of a file: which one, where the clip begins on its clock, and what is found while it is decoded."""

    container: InputContainer
    path: str
    index: int
    begins_s: float
    time_base_s: float
    rate: int = 0
    ends_s: float = 0.0

    def blocks(self) -> Iterator[_Block]:
        """The sound of the whole stream."""
        block = None
        for block in self._decoded(all_packets(self.container, self.index)):
            yield block
        if block is None:
            raise MediaError(CORRUPT_MEDIA, "the audio stream holds no samples")

    def blocks_from(self, time_s: float) -> Iterator[_Block]:
        """The sound from a block at or before a time of the clip on; nothing if it cannot be sought."""
        sought_s = time_s + self.begins_s
        return self._decoded(sought_packets(self.container, self.index, sought_s), sought_s + _PRE_ROLL_S / 2)

    def _decoded(self, packets: Iterator[Packet], errors_until_s: float = float("-inf")) -> Iterator[_Block]:
        """Mono sound of packets. The first ones after a seek may lean on others before them, which is no error."""
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
                    # Sample format only; the rate is changed later. One converter takes frames of one kind. Interleaved,
                    # because PyAV reads planar frames of eight and more channels beyond their end.
                    to_float = av.AudioResampler(format="flt")
                time_s = None if frame.time is None else frame.time - self.begins_s
                if frame.time is not None:
                    self.ends_s = frame.time + frame.samples / frame.sample_rate
                for converted in to_float.resample(frame):
                    samples = converted.to_ndarray().reshape(-1, converted.layout.nb_channels).mean(axis=1)
                    if not np.isfinite(samples).all():
                        raise MediaError(CORRUPT_MEDIA, "the sound holds samples that are not finite numbers")
                    yield _Block(time_s, samples)


def _by_time(blocks: Iterator[_Block], track: _Track, position: int) -> Iterator[np.ndarray]:
    """Sound without a gap: silence where the time stamps leave a hole, and no sound twice where they overlap."""
    waiting: deque[_Block] = deque()
    clock_s = 0.0  # what is added to the time stamps since the clock was last set anew
    last_s = float("-inf")

    def shift() -> int:
        """How many samples the next block stands too early (too late if negative); 0 while the blocks do not agree."""
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
            if went_back or samples_off > _MAX_HOLE_S * track.rate:
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


def _stray(blocks: list[_Block], rate: int) -> float:
    """How many samples later than their count the blocks' time stamps are: the least, since they only stray to be late."""
    count, strays = 0, []
    for block in blocks:
        if block.time_s is not None:
            strays.append(block.time_s * rate - count)
        count += len(block.samples)
    return min(strays, default=0.0)


def _from_middle(track: _Track, start_s: float) -> tuple[int, Iterator[np.ndarray]] | None:
    """
    The sound from some time before `start_s` on, as a pass from the start has it.

    Returns:
        The position of its first sample in the clip, and its samples; None if the file cannot be sought.
    """
    head = _until(track.blocks(), _PRE_ROLL_S)
    blocks = track.blocks_from(max(0.0, start_s - _PRE_ROLL_S))
    lead = _until(blocks, start_s)[1:]  # the first one after a seek may be incomplete
    if not head or not lead or lead[0].time_s is None or lead[0].time_s > start_s:
        return None
    offset, begins = _stray(head, track.rate), 0
    if abs(offset) > MAX_STRAY_S * track.rate:  # a late track keeps its place
        offset, begins = 0.0, round(_stray(head[:_FRAMES_THAT_AGREE], track.rate))
    estimate = _stray(lead, track.rate) - offset
    position = round(estimate)
    sizes = {len(block.samples) for block in head[1:-1] + lead[:-1]}
    if len(sizes) == 1:
        # Blocks of one size stand on a grid; time stamps are rounded (in Matroska to a millisecond) and place them nearly.
        size, origin = sizes.pop(), begins + len(head[0].samples)
        on_grid = origin + size * round((estimate - origin) / size)
        if abs(on_grid - estimate) <= min(size / 4, 2 + 2 * track.time_base_s * track.rate):
            position = on_grid
    return position, _by_time(itertools.chain(lead, blocks), track, position)


def _until(blocks: Iterator[_Block], time_s: float) -> list[_Block]:
    """The blocks up to the first one that begins at or after a time."""
    taken = []
    for block in blocks:
        taken.append(block)
        if block.time_s is not None and block.time_s >= time_s:
            break
    return taken


def _part(track: _Track, start_s: float, end_s: float | None) -> Iterator[np.ndarray]:
    """The samples of a track between two times."""
    if start_s < MIN_SEEK_S:
        yield from _cut(track, 0, _by_time(track.blocks(), track, 0), start_s, end_s)
    elif (sought := _from_middle(track, start_s)) is not None:
        yield from _cut(track, *sought, start_s, end_s)
    else:
        with open_media(track.path) as container:
            anew = replace(track, container=container)
            yield from _cut(anew, 0, _by_time(anew.blocks(), anew, 0), start_s, end_s)


def _cut(
    track: _Track, position: int, chunks: Iterator[np.ndarray], start_s: float, end_s: float | None
) -> Iterator[np.ndarray]:
    """Of chunks of which the first begins at a position, the samples between two times."""
    for chunk in chunks:
        first = round(start_s * track.rate) - position
        last = None if end_s is None else round(end_s * track.rate) - position
        position += len(chunk)
        if first < len(chunk):  # a part may begin hours into a video
            yield chunk[max(0, first) : last]
        if last is not None and last <= len(chunk):
            return
    check_whole(track.container, track.path, track.index, track.ends_s)
    if position <= round(start_s * track.rate):
        raise MediaError(TOO_SHORT, f"the sound ends at {position / track.rate:.2f} s, before {start_s:g} s")


def load_clip(
    path: str, sampling_rate: int = SAMPLING_RATE, start_s: float = 0.0, max_duration_s: float | None = None
) -> np.ndarray:
    """
    Decode the sound of one clip to mono float32, trimmed (never padded).

    Of several audio streams the one that ffmpeg calls best is taken (the one flagged as default, else the richest), and the
    next one if it cannot be decoded; where it stands in the file does not matter. Time counts from the first picture or
    sound of the file, as in `frames.load_frames`; silence stands where the stream has no sound.

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
    end_s = None if max_duration_s is None else start_s + max_duration_s
    reason = MediaError(NO_AUDIO, "the file has no audio stream")
    for attempt in itertools.count():
        with open_media(path) as container:
            streams = streams_of(container, "audio")
            if attempt == len(streams):
                break
            stream = streams[attempt]
            time_base_s = float(stream.time_base or 0)
            track = _Track(container, path, stream.index, first_of_any(container), time_base_s)
            try:
                return _resampled(track, _part(track, start_s, end_s), sampling_rate)
            except MediaError as error:
                if error.outcome != CORRUPT_MEDIA:
                    raise
                reason = reason if attempt else error
    raise reason


def _resampled(track: _Track, chunks: Iterator[np.ndarray], sampling_rate: int) -> np.ndarray:
    first = next(chunks, np.zeros(0, np.float32))  # the rate is known once something is decoded
    return resample(itertools.chain([first], chunks), track.rate, sampling_rate)


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


def stored_bytes(audio: dict[str, Any]) -> bytes:
    """
    The encoded sound of a row's audio column: its bytes, or the content of the file that it names.

    Raises:
        `MediaError`: It holds neither, or that file is not on this machine.
    """
    if audio.get("bytes") is not None:
        return cast("bytes", audio["bytes"])
    if not audio.get("path"):
        raise MediaError(CORRUPT_MEDIA, "the audio column holds neither bytes nor a path")
    try:
        with open(audio["path"], "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise MediaError(
            CORRUPT_MEDIA, f"the audio column names {audio['path']} and holds no bytes; that file cannot be read: {error}"
        ) from error


def clip_key(audio: dict[str, Any]) -> bytes | str:
    """What two rows with the same stored clip have in common."""
    return cast("bytes | str", audio["path"] if audio.get("bytes") is None else audio["bytes"])


def decode_audio(audio: dict[str, Any], window_s: float | None = None) -> Heard:
    """
    Decode a row's audio column and cut it to what a model can take in, knowingly.

    Args:
        audio (`dict`): `{"bytes", "path"}`, as stored in an undecoded `datasets.Audio` column. Bytes hold mono sound at
            16 kHz, as every dataset of ours does; a file that a path names may be of any kind.
        window_s (`float`, *optional*): A feature extractor would drop everything after this without a word; callers store
            `heard_s` in their rows.

    Raises:
        `MediaError`: The bytes are not audio at 16 kHz, or the file cannot be read.
    """
    import soundfile

    name = f" ({audio['path']})" if audio.get("path") else ""
    if audio.get("bytes") is None and audio.get("path") and os.path.isfile(audio["path"]):
        waveform = load_clip(audio["path"])
    else:
        try:
            waveform, rate = soundfile.read(io.BytesIO(stored_bytes(audio)), dtype="float32")
        except soundfile.LibsndfileError as error:
            raise MediaError(CORRUPT_MEDIA, f"the audio column cannot be decoded{name}: {error}") from error
        if rate != SAMPLING_RATE or waveform.ndim != 1:
            found = f"found shape {waveform.shape} at {rate} Hz{name}"
            raise MediaError(CORRUPT_MEDIA, f"expected mono at {SAMPLING_RATE} Hz, {found}")
    cut = waveform if window_s is None else waveform[: round(window_s * SAMPLING_RATE)]
    return Heard(cut, len(waveform) / SAMPLING_RATE, len(cut) / SAMPLING_RATE)

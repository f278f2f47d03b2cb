"""
Decode the audio of a clip: `load_clip` reads a media file, `decode_audio` a stored audio column. Both give mono at 16 kHz.

`track.py` decodes one stream and cuts it, `resampling.py` changes its rate.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from sightsound.data.clips import MediaError, open_media
from sightsound.data.containers import first_of_any, streams_of
from sightsound.data.resampling import resample
from sightsound.data.schema import CORRUPT_MEDIA, NO_AUDIO, SAMPLING_RATE
from sightsound.data.track import Track, samples_between


SILENCE_PEAK = 1 / 32768  # the lowest bit of 16-bit audio: a quieter track carries nothing


def load_clip(
    path: str, sampling_rate: int = SAMPLING_RATE, start_s: float = 0.0, max_duration_s: float | None = None
) -> np.ndarray:
    """
    Decode the audio of one clip to mono float32, trimmed (never padded).

    Of several audio streams it takes the one that ffmpeg calls best (the one flagged as default, else the richest), or the
    next one if that cannot be decoded. Time counts from the first video frame or audio sample of the file, as in
    `frames.load_frames`. Gaps in the stream become silence.

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
            track = Track(container, path, stream.index, first_of_any(container), time_base_s)
            try:
                return _resampled(track, samples_between(track, start_s, end_s), sampling_rate)
            except MediaError as error:
                if error.outcome != CORRUPT_MEDIA:
                    raise
                reason = reason if attempt else error
    raise reason


def _resampled(track: Track, chunks: Iterator[np.ndarray], sampling_rate: int) -> np.ndarray:
    first = next(chunks, np.zeros(0, np.float32))  # only now is the rate known
    return resample(itertools.chain([first], chunks), track.rate, sampling_rate)


def is_silent(waveform: np.ndarray) -> bool:
    """Whether decoded audio carries nothing at all."""
    return float(np.abs(waveform).max(initial=0.0)) < SILENCE_PEAK


def encode_flac(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """Mono float32 to 16-bit FLAC bytes. Samples beyond full scale are clipped, as ffmpeg does."""
    return _encode(waveform, sampling_rate, "FLAC")


def encode_wav(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """Mono float32 to 16-bit WAV bytes, the format that chat APIs take."""
    return _encode(waveform, sampling_rate, "WAV")


def _encode(waveform: np.ndarray, sampling_rate: int, file_format: str) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), sampling_rate, format=file_format, subtype="PCM_16")
    return buffer.getvalue()


@dataclass(frozen=True)
class DecodedAudio:
    """A clip as a model gets it: `waveform` `(num_samples,)` at 16 kHz; `duration_s` before the cut, `heard_s` after it."""

    waveform: np.ndarray
    duration_s: float
    heard_s: float


def stored_bytes(audio: dict[str, Any]) -> bytes:
    """
    The encoded audio of a row's audio column: its bytes, or the content of the file that it names.

    Raises:
        `MediaError`: It holds neither, or the file is not on this machine.
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
    """A key that is equal for two rows with the same stored clip."""
    return cast("bytes | str", audio["path"] if audio.get("bytes") is None else audio["bytes"])


def decode_audio(audio: dict[str, Any], window_s: float | None = None) -> DecodedAudio:
    """
    Decode a row's audio column and cut it to the window of a model.

    Args:
        audio (`dict`): `{"bytes", "path"}`, as stored in an undecoded `datasets.Audio` column. Bytes have to be mono audio at
            16 kHz, as in every dataset of ours; a file that a path names may be of any kind.
        window_s (`float`, *optional*): A feature extractor would silently drop everything after it. Callers store `heard_s`
            in their rows.

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
    return DecodedAudio(cut, len(waveform) / SAMPLING_RATE, len(cut) / SAMPLING_RATE)

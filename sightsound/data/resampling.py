"""Resample audio in bounded memory: with torchaudio, or with ffmpeg for rates that torchaudio handles badly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np


if TYPE_CHECKING:
    from av import AudioFrame


# The filter of ffmpeg's resampler (libswresample's defaults: 32 taps, cutoff 0.97, Kaiser window with beta 9), so that mono and
# stereo audio is what others extract with ffmpeg. (ffmpeg weights more channels by their place.) torchaudio's default filter
# lets more of the upper band through.
_TAPS_WIDTH = 16
_ROLLOFF = 0.97
_LIKE_FFMPEG = {
    "lowpass_filter_width": _TAPS_WIDTH,
    "rolloff": _ROLLOFF,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 9.0,
}
# torchaudio computes one filter for every phase between the two rates: 85,000 numbers from 44,100 Hz to 16,000 Hz, but 700
# million from 44,099 Hz, because the rates share no divisor.
_MAX_KERNEL_SIZE = 4_000_000
# A clip up to this long is resampled in one piece, a longer one in blocks of this length.
_BLOCK_S = 300


def resample(chunks: Iterable[np.ndarray], rate: int, sampling_rate: int) -> np.ndarray:
    """
    Resample mono audio.

    Args:
        chunks (`Iterable[np.ndarray]`): The samples in order, float32.
        rate (`int`): Rate of the samples, Hz.
        sampling_rate (`int`): Rate of the result, Hz.
    """
    if rate == sampling_rate:
        return _joined(chunks)
    divisor = math.gcd(rate, sampling_rate)
    old, new = rate // divisor, sampling_rate // divisor
    width = math.ceil(_TAPS_WIDTH * old / (min(old, new) * _ROLLOFF))
    if new * (old + 2 * width) > _MAX_KERNEL_SIZE:
        return _joined(_with_ffmpeg(chunks, rate, sampling_rate))
    return _joined(_with_torchaudio(chunks, old, new, width, _BLOCK_S * divisor))


def _joined(chunks: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *chunks])


def _with_torchaudio(chunks: Iterable[np.ndarray], old: int, new: int, width: int, block: int) -> Iterator[np.ndarray]:
    """`block * old` samples become `block * new`. Each block includes as much of its neighbours as the filter reaches."""
    import torch
    from torchaudio.functional import resample as resample_whole

    reach = math.ceil(width / old) + 1  # in units of `old` samples
    held: list[np.ndarray] = []
    num_held, before = 0, 0
    for chunk in chunks:
        held.append(chunk)
        num_held += len(chunk)
        if num_held >= (before + block + reach) * old:
            samples = np.concatenate(held)
            done = resample_whole(torch.from_numpy(samples), old, new, **_LIKE_FFMPEG).numpy()
            last = num_held // old - reach
            yield done[before * new : last * new]
            held, before = [samples[(last - reach) * old :]], reach
            num_held = len(held[0])
    if held:
        done = resample_whole(torch.from_numpy(np.concatenate(held)), old, new, **_LIKE_FFMPEG).numpy()
        yield done[before * new :]


def _with_ffmpeg(chunks: Iterable[np.ndarray], rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    """libswresample interpolates between the phases of one table, whatever the rates."""
    import av
    from av.filter import Graph

    graph = Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    converter = graph.add("aresample", f"{sampling_rate}:linear_interp=1")
    sink = graph.add("abuffersink")
    source.link_to(converter)
    converter.link_to(sink)
    graph.configure()

    def ready() -> Iterator[np.ndarray]:
        while True:
            try:
                frame = cast("AudioFrame", sink.pull())
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame.to_ndarray()[0]

    num_samples = 0
    for chunk in chunks:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk[None], np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), num_samples
        num_samples += len(chunk)
        source.push(frame)
        yield from ready()
    if num_samples:
        source.push(None)
        yield from ready()

"""Write a segment as a small video file, which the teacher and people watch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from sightsound.data.schema import SAMPLING_RATE


# More than a teacher is shown by default: 16 frames of 360 x 420 over ten seconds. About 0.4 MB for ten seconds.
SEGMENT_MAX_PIXELS, SEGMENT_MAX_FPS = 640 * 360, 12
TICKS_PER_S = 90_000  # of the file's clock, a multiple of every common frame rate
# One thread, because with several the bytes may differ from run to run.
ENCODER = {"preset": "superfast", "crf": "23", "threads": "1"}


def write_segment(path: Path, frames: Iterator[tuple[float, np.ndarray]], waveform: np.ndarray) -> None:
    """
    Write an mp4 (H.264, AAC). Picture and sound keep their times, counted from the start of the segment.

    Args:
        path (`Path`): Complete when this returns.
        frames (`Iterator`): Seconds after the start, and pixels, uint8 `(height, width, 3)`; at least one.
        waveform (`np.ndarray`): shape `(num_samples,)`, mono at 16 kHz, from the start on.
    """
    import av

    temporary = path.with_name(f".{path.name}.tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=SEGMENT_MAX_FPS, options=ENCODER)
        video.pix_fmt, video.time_base = "yuv420p", Fraction(1, TICKS_PER_S)
        video.codec_context.time_base = Fraction(1, TICKS_PER_S)
        sound = container.add_stream("aac", rate=SAMPLING_RATE)
        sound.layout = "mono"
        for time_s, pixels in frames:
            if video.codec_context.width != pixels.shape[1]:
                video.height, video.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(time_s * TICKS_PER_S), Fraction(1, TICKS_PER_S)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        samples = (np.clip(waveform, -1.0, 1.0) * 32767).astype(np.int16)
        size = sound.codec_context.frame_size
        for start in range(0, len(samples), size):
            block = av.AudioFrame.from_ndarray(samples[None, start : start + size], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = SAMPLING_RATE, start, Fraction(1, SAMPLING_RATE)
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    with open(temporary, "rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, path)

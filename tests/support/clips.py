"""Media files made for a test, and what is heard in them."""

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sightsound.data.audio import load_clip
from sightsound.data.clips import MediaError


def pitch_hz(waveform: np.ndarray) -> float:
    """The strongest frequency of a 16 kHz waveform."""
    return float(np.abs(np.fft.rfft(waveform)).argmax() * 16_000 / len(waveform))


def outcome_of(path, load=load_clip, **options) -> str:
    with pytest.raises(MediaError) as raised:
        load(str(path), **options)
    return raised.value.outcome


def media_rows(real_data) -> list[dict[str, str]]:
    with open(real_data / "MEDIA.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["file"].startswith("video/")]


def write_placed(path, parts, codec="pcm_s16le", rate=48_000, video=None, block=960, duration_s=4.0):
    """
    A file with beeps at given times and a bright frame for each of them.

    Args:
        parts: Seconds from and to which the audio stream has sound.
        video: Seconds from and to which there are frames, at 50 per second; None for no video.
    """
    import av

    beep = np.zeros(round(duration_s * rate), np.float32)
    beep += 0.01 * np.sin(2 * np.pi * 100 * np.arange(len(beep)) / rate)
    for second in range(int(duration_s)):
        start = round((second + 0.5) * rate)
        beep[start : start + rate // 10] += 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate // 10) / rate)
    with av.open(str(path), "w") as container:
        if video is not None:
            name = {".webm": "libvpx", ".mpg": "mpeg2video"}.get(path.suffix, "libx264")
            pictures = container.add_stream(name, rate=50, options={"g": "25", "preset": "ultrafast", "threads": "1"})
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        if video is not None:
            for i in range(round(video[0] * 50), round(video[1] * 50)):
                level = 250 if 0.5 <= (i / 50) % 1 < 0.6 else 10
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 50)
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode())
        size = stream.codec_context.frame_size or block
        for start_s, end_s in parts:
            for start in range(round(start_s * rate), round(end_s * rate) - size + 1, size):
                frame = av.AudioFrame.from_ndarray(
                    (beep[None, start : start + size] * 32767).astype(np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def beeps_s(waveform) -> list[float]:
    """When the beeps begin."""
    window = 80
    loud = np.abs(waveform[: len(waveform) // window * window]).reshape(-1, window).max(axis=1) > 0.25
    return [i * window / 16_000 for i in np.flatnonzero(loud[1:] & ~loud[:-1]) + 1]


def tone(hz: float, rate: int, duration_s: float) -> np.ndarray:
    """A sine at half of full scale; 0 Hz is silence."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def write_clip(
    path: Path,
    tracks: Sequence[tuple[float, int, int]] = ((440.0, 44_100, 2),),
    duration_s: float = 1.0,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    audio_first: bool = False,
) -> Path:
    """
    A media file with one audio stream per `(hz, rate, channels)`, and frames that grow brighter by 10 levels each.

    Args:
        fps: 0 for no video stream.
        audio_first: Put the audio at stream 0, where some real files have it.
    """
    import av

    codec = "aac" if path.suffix.lower() in (".mp4", ".m4a") else "pcm_s16le"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:

        def add_video():
            video = container.add_stream("libx264", rate=fps, options={"crf": "5", "preset": "ultrafast", "threads": "1"})
            (video.width, video.height), video.pix_fmt = size, "yuv420p"
            return video

        def add_audio(rate: int, channels: int):
            audio = container.add_stream(codec, rate=rate)
            audio.layout = "mono" if channels == 1 else "stereo"
            return audio

        video = add_video() if fps and not audio_first else None
        streams = [add_audio(rate, channels) for _, rate, channels in tracks]
        if fps and audio_first:
            video = add_video()
        if video is not None:
            for i in range(round(duration_s * fps)):
                pixels = np.full((size[1], size[0], 3), min(255, 10 * i), np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode())
        for stream, (hz, rate, channels) in zip(streams, tracks, strict=True):
            samples = np.tile((tone(hz, rate, duration_s) * 32767).astype(np.int16), (channels, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout=stream.layout.name)
            frame.sample_rate = rate
            fifo = av.AudioFifo()
            fifo.write(frame)
            while (block := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
                container.mux(stream.encode(block))
            container.mux(stream.encode())
    return path

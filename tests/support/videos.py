"""Videos made for a test: moving patterns and noise, each of its own; joined files; and what is seen in a video."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sightsound.data.frames import each_frame


RATE, SIZE = 16_000, (64, 48)
MOVING, STILL = "moving", "still"


def write_video(
    path: Path, seed: int, parts: Sequence[tuple[float, bool, str]] = ((3.0, True, MOVING),), fps: int = 10, crf: int = 20
) -> Path:
    """
    An mp4 (or webm) with noise bursts and drifting patterns that differ between seeds.

    Args:
        parts: Seconds, whether there is sound, and `MOVING` or `STILL`, one after the other.
    """
    import av

    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    duration_s = sum(part[0] for part in parts)
    sound = 0.3 * random.standard_normal(round(duration_s * RATE))
    # Bursts of a length of their own: noise alone sounds as any other noise does.
    sound *= np.repeat(random.uniform(0.05, 1.0, -(-len(sound) // 1600)), 1600)[: len(sound)]
    patterns = random.uniform(0, 255, (round(duration_s) + 1, 6, 8, 3))  # another one every second
    starts = np.cumsum([0.0, *(part[0] for part in parts)])
    frames = []
    for (length_s, is_loud, picture), start_s in zip(parts, starts, strict=False):
        if not is_loud:
            sound[round(start_s * RATE) : round((start_s + length_s) * RATE)] = 0
        for i in range(round(length_s * fps)):
            pattern = patterns[int(start_s if picture == STILL else start_s + i / fps)]
            coarse = np.roll(pattern, 0 if picture == STILL else i, axis=1)
            frames.append(np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8))
    webm = path.suffix == ".webm"
    with av.open(str(path), "w") as container:
        options = {"crf": str(crf), "preset": "ultrafast", "g": "20", "threads": "1", "deadline": "realtime", "cpu-used": "8"}
        video = container.add_stream("libvpx" if webm else "libx264", rate=fps, options=options)
        (video.width, video.height), video.pix_fmt = SIZE, "yuv420p"
        audio = container.add_stream("libopus" if webm else "aac", rate=48_000 if webm else RATE)
        audio.layout = "mono"
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray((sound.clip(-1, 1) * 32767).astype(np.int16)[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
        fifo = av.AudioFifo()
        for converted in av.AudioResampler(format=audio.format.name, layout="mono", rate=audio.rate).resample(block):
            fifo.write(converted)
        while (full := fifo.read(audio.codec_context.frame_size or 960, partial=True)) is not None:
            container.mux(audio.encode(full))
        container.mux(audio.encode())
    return path


def concatenate(path: Path, pieces: Sequence[Path]) -> Path:
    """One file of several with the same streams, by copying packets: a long file in little time."""
    import av

    with av.open(str(path), "w") as target:
        streams: list[Any] = []
        offset_s, last = Fraction(0), [-(1 << 60)] * 2
        for piece in pieces:
            with av.open(str(piece)) as source:
                kept = [source.streams.video[0], source.streams.audio[0]]
                streams = streams or [target.add_stream_from_template(stream) for stream in kept]
                ends_s = offset_s
                for packet in source.demux(*kept):
                    if packet.dts is None:
                        continue
                    shift = round(offset_s / packet.time_base)
                    ends_s = max(ends_s, (packet.pts + shift + (packet.duration or 0)) * packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    number = kept.index(packet.stream)
                    if packet.dts > last[number]:  # not the encoder's priming, which lies before the piece
                        last[number], packet.stream = packet.dts, streams[number]
                        target.mux(packet)
                offset_s = ends_s
    return path


def flashes_s(path: Path) -> list[float]:
    """When bright frames begin in a video."""
    levels = [(time_s, pixels.mean()) for time_s, pixels in each_frame(str(path), 64 * 48, 1000, 0.0, 1e9)]
    begins = itertools.pairwise(levels)
    return [time_s for (_, before), (time_s, level) in begins if level > 128 >= before]

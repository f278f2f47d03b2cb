"""
CPU seconds that a part deep in a long file takes, to those of a part near its start; and that both passes find the same.

    python tests/benchmarks/seek_cost.py [--minutes 40] [--repeats 5]

Files of several formats are made (pictures of 320 x 180 at 5 per second, a rising tone with noise). The part of ten seconds at
2,300 s is sought; with seeking off it is decoded from the start, for comparison.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import audio, frames


Load = Callable[[float], np.ndarray]

MAX_RATIO = 1.5
PART_S = 10.0
FPS = 5
# A demuxer of .mp3 finds a place by reading every frame before it, without decoding: its stamps after a guess would be guesses.
FORMATS = {
    "a.mp4": ("aac", 44_100, "libx264"),
    "a.mkv": ("aac", 44_100, "libx264"),
    "a.webm": ("libopus", 48_000, "libvpx"),
    "a.ts": ("aac", 44_100, "libx264"),
    "a.opus": ("libopus", 48_000, None),
    "a.flac": ("flac", 44_100, None),
    "a.wav": ("pcm_s16le", 44_100, None),
    "a.mp3": ("libmp3lame", 44_100, None),
}
READ_THROUGH = ("a.mp3",)


@dataclass
class BenchmarkArguments:
    minutes: int = field(default=40, metadata={"help": "length of the files", "minimum": 2})
    repeats: int = field(default=5, metadata={"help": "turns, of which the fastest counts", "minimum": 1})


def make(path: Path, codec: str, rate: int, video: str | None, seconds: int) -> None:
    """A file with a rising tone and, perhaps, pictures that differ from one another."""
    import av

    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        if video is not None:
            options = {"preset": "ultrafast", "g": "25", "threads": "1", "deadline": "realtime", "cpu-used": "8"}
            pictures = container.add_stream(video, rate=FPS, options=options)
            pictures.width, pictures.height, pictures.pix_fmt = 320, 180, "yuv420p"
        sound = container.add_stream(codec, rate=rate)
        sound.layout = "mono"
        fifo = av.AudioFifo()
        for start in range(0, seconds, 10):
            for i in range(start * FPS, (start + 10) * FPS if video is not None else 0):
                frame = av.VideoFrame.from_ndarray(np.full((180, 320, 3), i % 251, np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, FPS)
                container.mux(pictures.encode(frame))
            times = np.arange(start * rate, (start + 10) * rate) / rate
            samples = 0.3 * np.sin(2 * np.pi * (300 + 0.05 * times) * times) + 0.05 * random.standard_normal(len(times))
            block = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = rate, start * rate, Fraction(1, rate)
            fifo.write(block)
            while (full := fifo.read(sound.codec_context.frame_size or 4096)) is not None:
                container.mux(sound.encode(full))
        container.mux(sound.encode())
        if video is not None:
            container.mux(pictures.encode())


def sound_of(path: str, start_s: float) -> np.ndarray:
    return audio.load_clip(path, start_s=start_s, max_duration_s=PART_S)


def frames_of(path: str, start_s: float) -> np.ndarray:
    return frames.load_frames(path, 8, 50_000, start_s, PART_S).pixels


def cost_s(load: Callable[[], object], repeats: int) -> float:
    costs = []
    for _ in range(repeats):
        start = time.process_time()
        load()
        costs.append(time.process_time() - start)
    return min(costs)


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    deep_s = args.minutes * 60 - 100.0
    slow = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (codec, rate, video) in FORMATS.items():
            path = str(Path(folder) / name)
            make(Path(path), codec, rate, video, args.minutes * 60)
            loads: dict[str, Load] = {"sound": partial(sound_of, path)}
            if video is not None:
                loads["frames"] = partial(frames_of, path)
            for kind, load in loads.items():
                near, deep = (cost_s(partial(load, start_s), args.repeats) for start_s in (10.0, deep_s))
                sought = load(deep_s)
                limits = audio.MIN_SEEK_S, frames.MIN_SEEK_S
                audio.MIN_SEEK_S = frames.MIN_SEEK_S = float("inf")
                apart = np.abs(sought.astype(float) - load(deep_s)).max()
                audio.MIN_SEEK_S, frames.MIN_SEEK_S = limits
                costs = f"{near:.3f} s at 10 s, {deep:.3f} s at {deep_s:.0f} s, x{deep / near:.2f}"
                print(f"{name} {kind}: {costs}; apart {apart:.1g}", flush=True)
                if deep > MAX_RATIO * near and name not in READ_THROUGH:
                    slow.append(f"{name} {kind}")
            Path(path).unlink()
    if slow:
        raise InputError(f"more than {MAX_RATIO} times the cost at 10 s: {', '.join(slow)}")


if __name__ == "__main__":
    run(main)

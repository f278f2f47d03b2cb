"""
Clips per CPU-second of `load_clip` + `encode_flac` against one call of ffmpeg per clip, and how far the two sound apart.

    python tests/benchmarks/extract_audio.py [--media_dir ../shared/data/video] [--repeats 5]

Reference: the ffmpeg of the system on one thread, told to decode, mix to mono, resample to 16 kHz and write FLAC, once per
clip. Both read the first ten seconds of the same files in turns; the ratio of each turn is printed, since machines are noisy.
"""

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.audio import encode_flac, load_clip
from sightsound.data.clips import CLIP_DURATION_S, MEDIA_EXTENSIONS, MediaError
from sightsound.data.schema import SAMPLING_RATE


MIN_RATIO = 2.0  # clips per CPU-second, ours to ffmpeg's
MAX_RMS_APART = 1e-3
MAX_LAG = 100  # samples; how far apart the two may start (encoder delay)


@dataclass
class BenchmarkArguments:
    media_dir: str = field(default="../shared/data/video", metadata={"help": "clips to extract"})
    repeats: int = field(default=5, metadata={"help": "turns", "minimum": 1})


def cpu_s() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cpu_s_of(extract: Callable[[Path], object], clips: list[Path]) -> float:
    start = cpu_s()
    for clip in clips:
        extract(clip)
    return cpu_s() - start


def ffmpeg(clip: Path, stream: int, output: Path) -> None:
    source = ["-threads", "1", "-i", str(clip), "-t", str(CLIP_DURATION_S), "-vn"]
    target = ["-map", f"0:{stream}", "-ac", "1", "-ar", str(SAMPLING_RATE), str(output)]
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *source, *target], check=True)


def best_audio_stream(clip: Path) -> int:
    """The one that `load_clip` decodes; ffmpeg's command line would choose by other rules."""
    import av

    with av.open(str(clip)) as container:
        stream = container.streams.best("audio")
        assert stream is not None
        return int(stream.index)


def rms_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """RMS of the difference where the two line up best, away from the edges."""
    middle = slice(MAX_LAG, min(len(ours), len(theirs)) - MAX_LAG)
    shifted = (theirs[middle.start + lag : middle.stop + lag] for lag in range(-MAX_LAG, MAX_LAG + 1))
    return min(float(np.sqrt(np.mean((ours[middle] - other) ** 2))) for other in shifted)


def main() -> None:
    import soundfile
    import torch

    torch.set_num_threads(1)  # per core, as ffmpeg is told to and as the builders' workers do
    args = parse_arguments(BenchmarkArguments, __doc__)
    if shutil.which("ffmpeg") is None:
        raise InputError("no ffmpeg on the PATH to compare with")
    found = [path for path in sorted(Path(args.media_dir).glob("*")) if path.suffix in MEDIA_EXTENSIONS]
    apart: list[float] = []
    streams: dict[Path, int] = {}  # of each clip with sound, so that both decode the same one
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "clip.flac"
        for clip in found:
            try:
                ours = load_clip(str(clip), max_duration_s=CLIP_DURATION_S)
            except MediaError as error:
                print(f"{clip.name}: left out, {error}")
                continue
            streams[clip] = best_audio_stream(clip)
            ffmpeg(clip, streams[clip], output)
            apart.append(rms_apart(ours, soundfile.read(output, dtype="float32")[0]))
            print(f"{clip.name}: {apart[-1]:.6f} RMS apart")
        if not streams:
            raise InputError(f"no clip with sound in {args.media_dir}")
        ratios = []
        for _ in range(args.repeats):
            theirs_s = cpu_s_of(lambda clip: ffmpeg(clip, streams[clip], output), list(streams))
            ours_s = cpu_s_of(lambda clip: encode_flac(load_clip(str(clip), max_duration_s=CLIP_DURATION_S)), list(streams))
            ratios.append(theirs_s / ours_s)
            print(f"{len(streams)} clips: ffmpeg {theirs_s:.2f} CPU-s, sightsound {ours_s:.2f} CPU-s, ratio {ratios[-1]:.1f}")
    ratio = float(np.median(ratios))
    print(f"median ratio {ratio:.1f}, at most {max(apart):.6f} RMS apart")
    if ratio < MIN_RATIO or max(apart) > MAX_RMS_APART:
        raise InputError(f"expected a ratio of at least {MIN_RATIO} and at most {MAX_RMS_APART} RMS")


if __name__ == "__main__":
    run(main)

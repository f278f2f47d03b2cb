"""
Memory and time of the avqa-audio build at N rows and at ten times N: memory stays, time per row stays.

    python tests/benchmarks/build_memory.py [--num_rows 300] [--num_proc 1]

Clips are ten seconds of stereo noise at 44.1 kHz, a few files under many names. Noise is the worst case of FLAC: 300 kB a row.
Resident memory is read from /proc ten times a second, of every process of the build by itself; what processes share (the
libraries, and what workers inherit) is counted once for each, so that the sum is more than the machine gives. With more
processes N has to fill them at once: a shard of 500 rows is one process's work, and a worker starts when it is needed.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.clips import CLIP_DURATION_S


BUILDER = Path(__file__).resolve().parents[2] / "dataset_builders" / "avqa_audio.py"
NUM_CLIPS = 20
SAMPLE_EVERY_S = 0.1
MAX_GROWTH = 1.1  # of memory, from N to ten times N


@dataclass
class BenchmarkArguments:
    num_rows: int = field(default=300, metadata={"help": "N", "minimum": 1})
    num_proc: int = field(default=1, metadata={"help": "processes of the build", "minimum": 1})


@dataclass(frozen=True)
class Cost:
    """Of one build; `sum_mib` is the highest sum over its processes at one moment, `worker_mib` the largest but the first."""

    sum_mib: float
    main_mib: float
    worker_mib: float
    wall_s: float
    cpu_s: float


def processes_of(leader: int) -> Iterator[tuple[int, float]]:
    """Process id and resident MiB of everything in a session."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader:
                    pages = int(Path(entry.path, "statm").read_text().split()[1])
                    yield int(entry.name), pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            except (ProcessLookupError, FileNotFoundError):
                continue  # it ended meanwhile


def cost_of(command: list[str]) -> Cost:
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    highest_sum = highest_main = highest_worker = 0.0
    while process.poll() is None:
        resident = dict(processes_of(process.pid))
        highest_sum = max(highest_sum, sum(resident.values()))
        highest_main = max(highest_main, resident.pop(process.pid, 0.0))
        highest_worker = max(highest_worker, *resident.values(), 0.0)
        time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        raise InputError(f"the build ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(highest_sum, highest_main, highest_worker, time.monotonic() - begun_s, cpu_s)


def make_input(folder: Path, num_rows: int) -> None:
    """Annotations, and `clips/` with a link for each of them to one of a few files."""
    import soundfile

    rng = np.random.default_rng(0)
    (folder / "clips").mkdir()
    for i in range(NUM_CLIPS):
        noise = rng.uniform(-0.5, 0.5, (round(44_100 * CLIP_DURATION_S), 2))
        soundfile.write(folder / f"{i}.wav", noise, 44_100, subtype="PCM_16")
    rows = []
    for i in range(num_rows):
        name = f"noise-{i:05d}_000006"
        (folder / "clips" / f"{name}.wav").symlink_to(folder / f"{i % NUM_CLIPS}.wav")
        row = {"id": i, "video_name": name, "question_text": "What sounds?", "multi_choice": ["a", "b", "c", "d"], "answer": 0}
        rows.append(row)
    (folder / "train_qa.json").write_text(json.dumps(rows))


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    sizes = (args.num_rows, 10 * args.num_rows)
    costs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_input(folder, max(sizes))
        flags = {"train_annotations": folder / "train_qa.json", "media_dir": folder / "clips", "num_proc": args.num_proc}
        given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        for size in sizes:
            output = ["--output_dir", str(folder / str(size)), "--limit", str(size)]
            cost = cost_of([sys.executable, str(BUILDER), *given, *output])
            written_mb = sum(file.stat().st_size for file in (folder / str(size) / "data").iterdir()) / 1e6
            print(
                f"{size} rows, {written_mb:.0f} MB: {cost.sum_mib:.0f} MiB in all, {cost.main_mib:.0f} the first process, "
                f"{cost.worker_mib:.0f} the largest worker; {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU-s"
            )
            costs.append(cost)
    small, large = costs
    first_ms, then_ms = (1000 * cost.cpu_s / size for cost, size in zip(costs, sizes, strict=True))
    added_ms = 1000 * (large.cpu_s - small.cpu_s) / (sizes[1] - sizes[0])
    print(f"CPU per row: {first_ms:.1f} ms, then {then_ms:.1f} ms, ratio {then_ms / first_ms:.2f}; one more: {added_ms:.1f} ms")
    growth = {part: getattr(large, part) / getattr(small, part) for part in ("sum_mib", "main_mib", "worker_mib")}
    print("memory, ratio: " + ", ".join(f"{part} {ratio:.3f}" for part, ratio in growth.items()))
    if then_ms > MAX_GROWTH * first_ms:
        raise InputError(f"a row costs {then_ms / first_ms:.2f} times as much at {sizes[1]} rows, expected {MAX_GROWTH}")
    if growth["sum_mib"] > MAX_GROWTH:
        raise InputError(f"memory grew by {growth['sum_mib']:.2f} from {sizes[0]} to {sizes[1]} rows, expected {MAX_GROWTH}")


if __name__ == "__main__":
    run(main)

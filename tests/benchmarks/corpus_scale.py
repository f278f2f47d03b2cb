"""
Memory and time of the corpus at N questions and at ten times N, eight traces each: memory stays, time per question stays.

    python tests/benchmarks/corpus_scale.py [--num_questions 4000] [--num_traces 8]

Traces, verdicts and the dataset are synthetic: about 900 characters a trace, a few hundred bytes in place of each sound, which
the corpus copies and never decodes. Resident memory is read from /proc twenty times a second; the anonymous part is what the
build holds itself, the rest are pages of mapped files (the libraries; the dataset with its sounds), which the system takes
back when it wants.
"""

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.method.prompts import render_trace
from sightsound.method.selection import UNVERIFIED, trace_outcome


BUILDER = Path(__file__).resolve().parents[2] / "dataset_builders" / "cot_corpus.py"
SAMPLE_EVERY_S = 0.05
MAX_TIME_GROWTH = 1.1  # CPU-seconds per question, from N to ten times N
# Of resident memory, likewise: an index of ids and digests, about 1 kB a question, is what grows.
MAX_MEMORY_GROWTH = 1.3
CHOICES = ["dog", "bell", "siren", "whistle"]
WORDS = ["I hear", "a dog", "barking", "and then", "the bell", "of a church", "far away", "while", "rain", "falls on leaves"]
# Roughly what a teacher does: most questions are unanimous, a sixth of the traces is rejected.
UNANIMOUS_SHARE, ACCEPT_SHARE = 0.6, 0.83


@dataclass
class BenchmarkArguments:
    num_questions: int = field(default=4_000, metadata={"help": "N", "minimum": 1})
    num_traces: int = field(default=8, metadata={"help": "traces per question", "minimum": 1})


@dataclass(frozen=True)
class Cost:
    """Of one build: highest resident memory, the highest anonymous part of it, time."""

    resident_mib: float
    anonymous_mib: float
    wall_s: float
    cpu_s: float


def trace_of(rng: random.Random, answer: int, verdict: str | None) -> dict[str, Any]:
    think = " ".join(rng.choices(WORDS, k=120))
    text = render_trace(think, CHOICES[answer])
    said = {"text": text, "think": think, "answer": answer, "finish_reason": "stop"}
    return {**said, "verdict": verdict, "verdict_text": None if verdict is None else verdict}


def ledger(num_questions: int, num_traces: int, is_verified: bool) -> Iterator[dict[str, Any]]:
    """The same questions and texts each time, with verdicts or without."""
    made = {"teacher": "t", "teacher_revision": "1", "prompt_version": "1", "num_traces": num_traces}
    made |= {"temperature": 1.0, "max_tokens": 512, "seed": 0, **UNVERIFIED}
    if is_verified:
        made |= {"checker": "c", "checker_revision": "1", "verdict_mode": "yes_no", "checker_heard_s": 10.0}
    for i in range(num_questions):
        rng = random.Random(i)
        answers = [1] * num_traces if rng.random() < UNANIMOUS_SHARE else rng.choices(range(4), k=num_traces)
        verdicts = ["accept" if rng.random() < ACCEPT_SHARE else "reject" for _ in answers]
        message = zip(answers, verdicts, strict=True)
        traces = [trace_of(rng, answer, verdict if is_verified else None) for answer, verdict in message]
        question = {"id": str(i), "question": "What is the first sound?", "choices": CHOICES, "media_sha256": f"{i:064x}"}
        yield {**question, "traces": traces, **trace_outcome(traces), **made}


def dataset(num_questions: int) -> Iterator[dict[str, Any]]:
    texts = dict.fromkeys(("video_id", "video_question", "answer_text", "question_relation", "question_type"), "")
    for i in range(num_questions):
        sound = {"bytes": random.Random(i).randbytes(300), "path": f"{i}.flac"}
        question = {"id": str(i), "question": "What?", "choices": CHOICES, "media_sha256": f"{i:064x}"}
        yield {**texts, **question, "audio": sound, "start_s": 0.0, "duration_s": 10.0, "answer": 0}


def make_inputs(folder: Path, num_questions: int, num_traces: int) -> dict[str, Path]:
    inputs = {
        "dataset": (dataset(num_questions), schema.avqa_audio_features()),
        "traces": (ledger(num_questions, num_traces, False), schema.traces_features()),
        "verdicts": (ledger(num_questions, num_traces, True), schema.traces_features()),
    }
    for name, (rows, features) in inputs.items():
        parquet.write_parquet(rows, features, folder / name / "data" / "train-00000-of-00001.parquet")
        write_dataset_card(folder / name, f"# {name}\n", {"default": {"train": "data/*.parquet"}})
    return {name: folder / name for name in inputs}


def memory_of(process: int) -> tuple[float, float]:
    """Resident and anonymous MiB of a process."""
    message = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    if "VmRSS" not in message:  # it has ended, and nobody has waited for it
        return 0.0, 0.0
    return tuple(int(message[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))


def cost_of(command: list[str], cache: Path) -> Cost:
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    highest = (0.0, 0.0)
    while process.poll() is None:
        highest = tuple(map(max, highest, memory_of(process.pid)))
        time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        raise InputError(f"the build ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(*highest, time.monotonic() - begun_s, cpu_s)


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    sizes = (args.num_questions, 10 * args.num_questions)
    costs = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            inputs = make_inputs(folder, size, args.num_traces)
            flags = {**inputs, "output_dir": folder / "corpus"}
            given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
            cost = cost_of([sys.executable, str(BUILDER), *given], folder / "cache")
            written_mb = sum(file.stat().st_size for file in (folder / "corpus").rglob("*.parquet")) / 1e6
        print(
            f"{size} questions, {size * args.num_traces} traces, {written_mb:.0f} MB: {cost.resident_mib:.0f} MiB resident, "
            f"{cost.anonymous_mib:.0f} of them anonymous; {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU-s",
            flush=True,
        )
        costs.append(cost)
    small, large = costs
    first_ms, then_ms = (1000 * cost.cpu_s / size for cost, size in zip(costs, sizes, strict=True))
    growth = large.resident_mib / small.resident_mib
    print(f"memory, ratio: resident {growth:.3f}, anonymous {large.anonymous_mib / small.anonymous_mib:.3f}")
    added_ms = 1000 * (large.cpu_s - small.cpu_s) / (sizes[1] - sizes[0])
    ratio = then_ms / first_ms
    print(f"CPU per question: {first_ms:.2f} ms, then {then_ms:.2f} ms, ratio {ratio:.2f}; one more: {added_ms:.2f} ms")
    if growth > MAX_MEMORY_GROWTH or then_ms > MAX_TIME_GROWTH * first_ms:
        raise InputError("memory or time per question grew by more than expected")


if __name__ == "__main__":
    run(main)

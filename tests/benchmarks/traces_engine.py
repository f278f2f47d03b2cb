"""
Wall time of requests through the `openai` client at a vLLM server, against the same fed straight into vLLM in a process.

    python -m tests.benchmarks.traces_engine [--num_videos 8] [--num_traces 8] [--max_tokens 128] [--repeats 2]

Both run a Qwen2.5-VL of 25 M random weights on the CPU (`make setup-vllm`) with the same flags, and get the same requests with
the same seeds as raw frames, eight in flight at the server: encoding them for it, sending and decoding them is in its time.
Both write the same texts, but for a few. They take turns while the other idles, on other videos each time. Compared are the
quickest turns, in seconds per token: what else the machine does only adds.
"""

import json
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.engines.base import Sampling, seed_of
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.openai_protocol import LARGEST_SEED
from sightsound.method.prompts import user_message
from sightsound.models.loading import load_processor
from tests.support import in_process_vllm, served


MAX_RATIO = 1 / 0.95
IN_FLIGHT = 8
SIDE = 364  # of a frame, close to traces.py's default area
# A draw between words of almost equal weight can fall either way, depending on which sequences share a step.
MIN_SAME, MAX_TOKENS_APART = 0.9, 0.02


@dataclass
class BenchmarkArguments:
    num_videos: int = field(default=8, metadata={"help": "per turn, 1,379 prompt tokens each", "minimum": 1})
    num_traces: int = field(default=8, metadata={"help": "traces per video", "minimum": 1})
    max_tokens: int = field(
        default=128, metadata={"help": "per trace; the model with random weights seldom ends before", "minimum": 1}
    )
    repeats: int = field(default=2, metadata={"help": "turns", "minimum": 1})


@dataclass(frozen=True)
class Turn:
    """Seconds for the same requests; the tokens that were written, and how many texts both wrote."""

    server_s: float
    in_process_s: float
    num_tokens: int
    num_same: int


def take_turn(
    engine: OpenAIEngine, reference: in_process_vllm.Reference, prompt: str, sampling: Sampling, num_videos: int, turn: int
) -> Turn:
    requests = served.long_videos(num_videos, seed=1000 + turn, side=SIDE)

    def ask_server() -> tuple[float, list[list[str]], int]:
        started = time.monotonic()
        results = {result.key: result for part in engine.complete(requests, sampling) for result in part}
        server_s = time.monotonic() - started
        failed = [result.detail for result in results.values() if result.outcome]
        if failed:
            raise InputError(f"the server did not answer: {failed[0]}")
        texts = [[completion.text for completion in results[request.key].completions] for request in requests]
        return server_s, texts, sum(result.usage.completion_tokens for result in results.values())

    def ask_reference() -> dict[str, Any]:
        seeds = [seed_of(sampling.seed, [request.key]) & LARGEST_SEED for request in requests]
        return reference.generate([prompt] * num_videos, [request.video for request in requests], seeds)

    if turn % 2:
        theirs = ask_reference()
        server_s, texts, num_tokens = ask_server()
    else:
        server_s, texts, num_tokens = ask_server()
        theirs = ask_reference()
    num_same = sum(map(str.__eq__, chain(*texts), chain(*theirs["texts"])))
    apart = abs(num_tokens / sum(theirs["completion_tokens"]) - 1)
    if num_same < MIN_SAME * num_videos * sampling.n or apart > MAX_TOKENS_APART:
        raise InputError(f"{num_same} texts are the same, tokens {apart:.3f} apart: the two were not asked for the same")
    return Turn(server_s, theirs["wall_s"], num_tokens, num_same)


def compare(
    server: served.VllmServer,
    reference: in_process_vllm.Reference,
    model: Path,
    sampling: Sampling,
    num_videos: int,
    repeats: int,
) -> dict[str, float]:
    """Prints a line per turn; returns seconds per 1,000 tokens of the quickest turns, and their ratio."""
    engine = OpenAIEngine("tiny", server.base_url, concurrency=IN_FLIGHT)
    message = user_message(served.QUESTION, "video")
    prompt = load_processor(str(model)).apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    take_turn(engine, reference, prompt, sampling, 1, 0)  # warms both up
    turns = []
    for i in range(1, repeats + 1):
        turn = take_turn(engine, reference, prompt, sampling, num_videos, i)
        print(
            f"{num_videos} videos x {sampling.n}, {turn.num_tokens} tokens, {turn.num_same} texts the same: server "
            f"{turn.server_s:.2f} s, in process {turn.in_process_s:.2f} s, ratio {turn.server_s / turn.in_process_s:.3f}",
            flush=True,
        )
        turns.append(turn)
    server_s = min(1000 * turn.server_s / turn.num_tokens for turn in turns)
    in_process_s = min(1000 * turn.in_process_s / turn.num_tokens for turn in turns)
    return {"server_s": server_s, "in_process_s": in_process_s, "ratio": server_s / in_process_s}


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    sampling = Sampling(args.num_traces, 1.0, args.max_tokens, seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = served.build_teacher(folder / "teacher", SIDE, **served.WIDE)
        with (
            in_process_vllm.reference(model, folder, sampling) as reference,
            served.serving(model, folder / "server.log") as server,
        ):
            server.wait()
            reference.wait()
            quickest = compare(server, reference, model, sampling, args.num_videos, args.repeats)
    print(json.dumps({name: round(value, 3) for name, value in quickest.items()}))
    if quickest["ratio"] > MAX_RATIO:
        raise InputError(f"expected a ratio of at most {MAX_RATIO:.3f}")


if __name__ == "__main__":
    run(main)

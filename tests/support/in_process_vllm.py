"""
vLLM's in-process engine as a subprocess that gets the requests of a server; `Reference` is its client.

    .venv-vllm/bin/python -m tests.support.in_process_vllm MODEL '{"n": 8, "temperature": 1.0, "max_tokens": 64}'

It runs in vLLM's environment. Each line of standard input names a file with raw frames and prompts; the answer is a line of
JSON: the seconds that the engine took, and the texts.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sightsound.engines.base import Sampling
from tests.support import served
from tests.support.tiny import REPO


SERVER_ONLY = ("host", "served-model-name")


class Reference:
    """`vllm.LLM` in a process of its own; `generate` is timed there, from raw frames to texts."""

    def __init__(self, process: subprocess.Popen, folder: Path):
        self._process, self._file = process, folder / "requests.npz"

    def wait(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, f"vLLM ended; see {self._file.with_name('in_process.log')}"
        return json.loads(line)

    def generate(self, prompts: Sequence[str], videos: Sequence[Any], seeds: Sequence[int]) -> dict[str, Any]:
        """`wall_s`, `prompt_tokens` and, per prompt, `texts`; the frames are read before the clock starts."""
        requests = [{"prompt": p, "metadata": v.metadata(), "seed": s} for p, v, s in zip(prompts, videos, seeds, strict=True)]
        frames = {str(i): video.pixels for i, video in enumerate(videos)}
        np.savez(self._file, requests=np.array(json.dumps(requests)), **frames)
        self._process.stdin.write(f"{self._file}\n")
        self._process.stdin.flush()
        return self.wait()


@contextmanager
def reference(model: Path, folder: Path, sampling: Sampling) -> Iterator[Reference]:
    """The engine with the flags of `served.FLAGS`; it starts while the `with` block runs, and `wait` waits for it."""
    drawn = {"n": sampling.n, "temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
    command = [str(served.PYTHON), "-m", "tests.support.in_process_vllm", str(model), json.dumps(drawn)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": REPO}
    environment = {**os.environ, **served.ENVIRONMENT, "PYTHONPATH": str(REPO)}
    with (
        open(folder / "in_process.log", "w") as log,
        subprocess.Popen(command, env=environment, stderr=log, **pipes) as process,
    ):
        try:
            yield Reference(process, folder)
        finally:
            process.stdin.close()  # ends the process and its engine
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # answers only on standard output
    import vllm

    flags = {name.replace("-", "_"): value for name, value in served.FLAGS.items() if name not in SERVER_ONLY}
    flags["kv_cache_memory_bytes"] = int(flags["kv_cache_memory_bytes"].removesuffix("M")) << 20
    engine = vllm.LLM(sys.argv[1], enforce_eager=True, **flags)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer({})
    for line in sys.stdin:
        with np.load(line.strip()) as file:
            requests = json.loads(str(file["requests"]))
            videos = [file[str(i)] for i in range(len(requests))]
        inputs, sampling = [], []
        for request, pixels in zip(requests, videos, strict=True):
            # As a server passes a list of frames: all of them.
            metadata = {**request["metadata"], "frames_indices": list(range(len(pixels))), "do_sample_frames": False}
            inputs.append({"prompt": request["prompt"], "multi_modal_data": {"video": [(pixels, metadata)]}})
            sampling.append(vllm.SamplingParams(seed=request["seed"], **json.loads(sys.argv[2])))
        started = time.monotonic()
        results = engine.generate(inputs, sampling, use_tqdm=False)
        wall_s = time.monotonic() - started
        texts = [[completion.text for completion in result.outputs] for result in results]
        tokens = [sum(len(completion.token_ids) for completion in result.outputs) for result in results]
        prompt_tokens = [len(result.prompt_token_ids) for result in results]
        answer({"wall_s": wall_s, "prompt_tokens": prompt_tokens, "completion_tokens": tokens, "texts": texts})


if __name__ == "__main__":
    main()

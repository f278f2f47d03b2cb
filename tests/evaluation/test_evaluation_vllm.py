"""
Evaluation with the real engine: vLLM's CPU build answers the whole of MMAU and MUSIC-AVQA, about sounds that are made up.

`make test-slow` installs it first (`make setup-vllm`).
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation import run as generate
from sightsound.benchmarks import get_benchmark
from sightsound.data import parquet, schema
from sightsound.data.audio import encode_flac
from sightsound.hub.cards import write_dataset_card
from sightsound.stage import JOURNAL_FILE
from tests.support import served
from tests.support.tiny import REPO


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`"),
]

NUM_ROWS = {"mmau": 1000, "music_avqa": 9129}
KILLED_AT = {"mmau": 400, "music_avqa": 3000}
NUM_CLIPS, CLIP_S = 16, 2.0
CONCURRENCY = 64
LORA = "student"


def make_clips() -> list[bytes]:
    """Tones that rise or fall, each its own way."""
    seconds = np.arange(round(CLIP_S * schema.SAMPLING_RATE)) / schema.SAMPLING_RATE
    hz = [(200 + 150 * i) * (1 + (0.2 if i % 2 else -0.2) * seconds) for i in range(NUM_CLIPS)]
    return [encode_flac((0.4 * np.sin(2 * np.pi * each * seconds)).astype(np.float32)) for each in hz]


def write_benchmark(name: str, annotations: Path, folder: Path) -> Path:
    """Every question of the official file, each with one of a few sounds."""
    benchmark, clips = get_benchmark(name), make_clips()

    def rows() -> Iterator[dict]:
        for i, annotation in enumerate(json.loads(annotations.read_text())):
            sound = {"bytes": clips[i % NUM_CLIPS], "path": f"{i % NUM_CLIPS}.flac"}
            yield {**benchmark.to_row(annotation), "audio": sound, "duration_s": CLIP_S, "media_sha256": str(i % NUM_CLIPS)}

    parquet.write_parquet(rows(), benchmark.features(), folder / "data" / "test-00000-of-00001.parquet")
    write_dataset_card(folder, f"# {name}\n", {"default": {"test": "data/*.parquet"}})
    return folder


def write_adapter(model: Path, folder: Path) -> Path:
    """A LoRA that changes what the model says, and is not strong enough to let it say one thing only."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    from sightsound.training.checkpoints import save_adapter

    torch.manual_seed(0)
    base = Qwen2AudioForConditionalGeneration.from_pretrained(model)
    targets = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    adapted = get_peft_model(base, LoraConfig(r=8, lora_alpha=1, target_modules=targets, init_lora_weights=False))
    save_adapter(adapted, AutoProcessor.from_pretrained(model), folder)
    return folder


def write_plugin(folder: Path) -> Path:
    """What tells vLLM of the project's LoRA for Qwen2-Audio, wherever the project itself is installed: a path for Python."""
    plugins = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    info = folder / "sightsound_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sightsound-plugin\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\nsightsound = {plugins['sightsound']}\n")
    return folder


@pytest.fixture(scope="module")
def session(real_data, tmp_path_factory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("session")
    model = served.build_checker(folder / "model")
    adapter = write_adapter(model, folder / "adapter")
    flags = {"max-num-seqs": 128, "max-lora-rank": 8, "lora-modules": f"{LORA}={adapter}", "enable-lora": True}
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(write_plugin(folder / "plugin"))]))
        server = stack.enter_context(served.serving(model, folder / "log", **flags))
        files = {"mmau": "mmau-test-mini.json", "music_avqa": "avqa-test.json"}
        data = {
            name: write_benchmark(name, real_data / "annotations" / name / file, folder / name) for name, file in files.items()
        }
        server.wait()
        yield SimpleNamespace(server=server, data=data, model=model, adapter=adapter)


def flags_of(session: SimpleNamespace, *names: str, **changed: Any) -> list[str]:
    flags = {"model": "tiny", "base_url": session.server.base_url, "max_tokens": 4, "concurrency": CONCURRENCY, **changed}
    dataset = [f"{name}={session.data[name]}" for name in names]
    given = [str(part) for flag, value in flags.items() if value is not None for part in (f"--{flag}", value)]
    return ["--benchmark", ",".join(names), "--dataset", *dataset, *given]


def num_answered(server: served.VllmServer) -> int:
    """Requests that the engine has finished."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        message = answer.read().decode()
    counts = re.findall(r'^vllm:request_success_total{.*finished_reason="(?:stop|length)".*} (\S+)$', message, re.MULTILINE)
    return round(sum(map(float, counts)))


def kill_at(journal: Path, num_lines: int, arguments: list[str]) -> dict[str, Any]:
    """Start a run, SIGKILL it when so much is journaled; returns what was."""
    command = [sys.executable, "-m", "evaluation", "run", *arguments]
    with subprocess.Popen(command, cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < num_lines):
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
    lines = journal.read_text().splitlines(keepends=True)
    return dict(json.loads(line) for line in lines if line.endswith("\n"))


def predictions_in(folder: Path) -> list[dict]:
    (file,) = (folder / "data").glob("predictions-*.parquet")
    return pq.read_table(file).to_pylist()


def test_the_whole_of_both_benchmarks_goes_through_the_engine_once_though_the_run_is_killed(session, tmp_path, capsys):
    out, before = tmp_path / "run", num_answered(session.server)
    arguments = [*flags_of(session, *NUM_ROWS), "--output_dir", str(out)]
    journaled = {name: kill_at(out / name / JOURNAL_FILE, count, arguments) for name, count in KILLED_AT.items()}
    generate.main(arguments)
    assert "mmau is complete" in capsys.readouterr().out

    answered = num_answered(session.server) - before
    assert sum(NUM_ROWS.values()) <= answered <= sum(NUM_ROWS.values()) + CONCURRENCY * len(KILLED_AT)
    for name, num_rows in NUM_ROWS.items():
        predictions = predictions_in(out / name)
        asked = parquet.open_dataset(str(session.data[name]), "test")
        assert [row["id"] for row in predictions] == asked["id"][:] and len(set(asked["id"])) == num_rows
        assert {row["finish_reason"] for row in predictions} <= {"stop", "length"}
        assert len({row["output"] for row in predictions}) > 4, "a model that says the same of every clip proves nothing"
        results = json.loads((out / name / "results.json").read_text())
        assert results["outcomes"] == {"none": {"answered": num_rows}}
        assert KILLED_AT[name] <= len(journaled[name]) < num_rows
        for key, entry in journaled[name].items():
            row = predictions[int(key.split("/")[0])]
            assert (row["prompt"], row["output"]) == (entry["prompt"], entry["completions"][0]["text"])

    generate.main([*flags_of(session, "mmau"), "--output_dir", str(tmp_path / "whole")])
    assert predictions_in(tmp_path / "whole") == predictions_in(out / "mmau")


def test_the_server_answers_as_the_model_in_this_process(session, tmp_path):
    """The same fifty questions, greedy, in float32: the base, and a LoRA on it by the name under which it is served."""
    said: dict[tuple[str, str], list[str]] = {}
    for kind, served_name in (("base", "tiny"), ("adapter", LORA)):
        there = {"model": served_name}
        here = {"model": session.model if kind == "base" else session.adapter, "base_url": None, "batch_size": 10}
        for where, changed in (("there", there), ("here", here)):
            folder = tmp_path / f"{kind}-{where}"
            generate.main(flags_of(session, "mmau", limit=50, max_tokens=24, output_dir=folder, **changed))
            said[kind, where] = [row["output"] for row in predictions_in(folder)]
        assert len(said[kind, "here"]) == 50 and len(set(said[kind, "here"])) > 4
        assert said[kind, "there"] == said[kind, "here"]
    assert said["base", "here"] != said["adapter", "here"]

"""Tiny inputs, made by the project's own scripts: checkpoints with random weights, a world of a few clips, its dataset."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.method.audio_contribution import known_contribution
from sightsound.method.prompts import render_trace
from sightsound.method.selection import UNVERIFIED, trace_outcome


REPO = Path(__file__).resolve().parents[2]
# Twelve questions are three calls of four: enough to stop in the middle. The rest is as small as the script allows.
WORLD_SIZE = {"train": 12, "validation": 4, "test": 8, "student": 8, "teacher": 8, "checker": 8}


def _command(script: str, flags: dict[str, Any]) -> list[str]:
    """A flag that is True stands alone."""
    given = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in flags.items())
    return [sys.executable, str(REPO / script), *(part for parts in given for part in parts)]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_script(script: str, **flags: Any) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT --flag value ...` as a user does; the caller looks at the exit code."""
    return subprocess.run(_command(script, flags), env=_environment(), capture_output=True, text=True, check=False)


def start_script(script: str, **flags: Any) -> subprocess.Popen:
    """The same without waiting for its end; nobody reads what it prints."""
    return subprocess.Popen(_command(script, flags), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_script_when(file: Path, min_lines: int, script: str, **flags: Any) -> int:
    """Start a script, SIGKILL it as soon as `file` has some lines; returns how many there were."""
    process = start_script(script, **flags)
    try:
        while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < min_lines):
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return file.read_bytes().count(b"\n") if file.exists() else 0


def miniature_builders() -> Any:
    """The module `recipes/miniature/pretrain.py`, whose `make_*` build the models of the miniature."""
    if "pretrain" not in sys.modules:
        spec = importlib.util.spec_from_file_location("pretrain", REPO / "recipes" / "miniature" / "pretrain.py")
        sys.modules["pretrain"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        spec.loader.exec_module(sys.modules["pretrain"])
    return sys.modules["pretrain"]


def build_checkpoint(kind: str, path: Path) -> Path:
    """A `student` (audio) or `teacher` (video) with random weights, saved as the miniature's pretraining saves it."""
    from transformers import GenerationConfig, set_seed

    from sightsound.training.checkpoints import save_checkpoint

    pretrain = miniature_builders()
    set_seed(0)
    model, processor = pretrain.make_student() if kind == "student" else pretrain.make_teacher()
    ids = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    save_checkpoint(model, processor, path)
    return path


def build_world(folder: Path) -> Path:
    sizes = {f"num_{part}": count for part, count in WORLD_SIZE.items()}
    done = run_script("dataset_builders/miniature.py", output_dir=folder, num_proc=1, **sizes)
    assert done.returncode == 0, done.stderr
    return folder


def build_dataset(world: Path, folder: Path) -> Path:
    annotations = {"train_annotations": world / "train_qa.json", "validation_annotations": world / "val_qa.json"}
    done = run_script("dataset_builders/avqa_audio.py", **annotations, media_dir=world / "clips", output_dir=folder, num_proc=1)
    assert done.returncode == 0, done.stderr
    return folder


def trace(text: str, answer: int | None, think: str | None, verdict: str | None = None, finish_reason: str = "stop") -> dict:
    """One trace in the form of the ledger."""
    said = {"text": text, "think": think, "answer": answer, "finish_reason": finish_reason}
    return {**said, "verdict": verdict, "verdict_text": None, "claims": None, "rewritten": None}


def trace_row(question: dict[str, Any], traces: Sequence[dict], **changed: Any) -> dict[str, Any]:
    """One row of a traces folder, for a question of the tiny dataset."""
    shared = {key: question[key] for key in ("id", "question", "choices", "media_sha256")} | known_contribution(question)
    provenance = {"teacher": "scripted", "teacher_revision": "1", "prompt_version": "1", "num_traces": len(traces)}
    sampling = {"temperature": 1.0, "max_tokens": 64, "seed": 0, "sampling": None}
    return {**shared, "traces": list(traces), **trace_outcome(traces), **UNVERIFIED, **provenance, **sampling, **changed}


def write_traces(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """A folder as `traces.py` and `verdicts.py` leave it."""
    parquet.write_parquet(rows, schema.traces_features(), folder / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Traces\n", {"default": {"train": "data/*.parquet"}})
    return folder


def write_corpus(questions: Sequence[dict[str, Any]], folder: Path) -> Path:
    """A corpus, as `cot_corpus.py` leaves it, in which every question has two accepted traces with the gold answer."""
    rows = []
    for question in questions:
        text = render_trace("I hear a dog.", question["answer_text"])
        rows.append(trace_row(question, [trace(text, question["answer"], "I hear a dog.", "accept")] * 2))
    parquet.write_parquet(rows, schema.traces_features(), folder / "data" / "traces" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Corpus\n", {"traces": {"train": "data/traces/*.parquet"}})
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return list(parquet.open_dataset(str(folder), "train"))


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "ledger.parquet").to_pylist()

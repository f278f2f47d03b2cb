"""What a release is made of: a finished stage, runs of its model, and the folder as the repository will be."""

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState
from trl import ModelConfig, SFTConfig

from evaluation import publish
from evaluation import run as generate
from sightsound.benchmarks import get_benchmark
from sightsound.data import parquet
from sightsound.hub.cards import write_dataset_card
from sightsound.stage import Stage, fingerprint
from sightsound.training.card import write_student_card
from tests.support import tiny
from tests.support.hub_routes import TOKEN


REPO_ID = "alice/student"
MMAU = {"task": "sound", "difficulty": "easy", "category": "Reasoning", "sub_category": "x", "source_dataset": "y"}
LORA = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}


@cache
def tiny_student() -> tuple[Any, Any]:
    return tiny.miniature_builders().make_student()


def write_card(
    folder: Path,
    stage: str,
    audio: Path,
    traces: Path | None,
    base: str,
    selection: str,
    audio_contribution: str | None = None,
    **changed: Any,
) -> str:
    """The card that a recipe writes, from the objects that a recipe has."""
    settings = {"output_dir": str(folder.parent), "use_cpu": True, "bf16": False, "report_to": "none", **changed}
    script = {"audio": str(audio), "traces": traces and str(traces), "selection": selection, "split": "train"}
    script |= {"audio_contribution": audio_contribution}
    student, processor = tiny_student()
    state = TrainerState(global_step=8, best_global_step=6, best_metric=0.75, log_history=[{"train_runtime": 90.0, "step": 8}])
    write_student_card(
        folder,
        method=stage,
        script_args=SimpleNamespace(**script, num_validation=4),
        training_args=SFTConfig(**settings),
        model_args=ModelConfig(model_name_or_path=base, use_peft=True, lora_target_modules=[LORA]),
        trainer=SimpleNamespace(state=state, model=student, processing_class=processor),
    )
    return (folder / "README.md").read_text()


def make_stage(folder: Path, checkpoint: Path, audio: Path, corpus: Path, base: str, **changed: Any) -> Path:
    """What a recipe leaves: `model/` with its card, and all that a publisher has no business with."""
    settings = {"audio": fingerprint(audio), "validation_split": "validation", "load_best_model_at_end": False, **changed}
    with Stage(folder, settings | {"model_name_or_path": base}) as stage:
        shutil.copytree(checkpoint, folder / "model")
        used = [{"id": row["id"], "outcome": "used", "detail": None} for row in tiny.read_rows(audio)]
        parquet.write_ledger([*used[1:], {**used[0], "outcome": "too_long"}], folder / "ledger.parquet")
        (folder / "model" / "training_args.bin").write_bytes(b"a pickle")
        (folder / "model" / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
        write_card(folder / "model", "SFT", audio, corpus, base, "tts_agfv", **(BEST if changed else {}))
        stage.finish()
    return folder / "model"


@pytest.fixture(scope="session")
def corpus(questions, tmp_path_factory) -> Path:
    return tiny.write_corpus(questions, tmp_path_factory.mktemp("corpus") / "traces")


@pytest.fixture(scope="session")
def model(student_checkpoint, tiny_dataset, corpus, tmp_path_factory) -> Path:
    return make_stage(tmp_path_factory.mktemp("sft") / "run", student_checkpoint, tiny_dataset, corpus, "alice/base")


@pytest.fixture(scope="session")
def mmau(questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "mmau"
    rows = [question | MMAU for question in questions[:3]]
    parquet.write_parquet(rows, get_benchmark("mmau").features(), folder / "data" / "test-00000-of-00001.parquet")
    write_dataset_card(folder, "# MMAU\n", {"default": {"test": "data/*.parquet"}})
    return folder


def evaluate(model: Path | str, output: Path, dataset: list[str], **flags: Any) -> Path:
    """`python -m evaluation run`, in this process."""
    given = {"model": model, "output_dir": output, "max_tokens": 4, **flags}
    names = ",".join(value.partition("=")[0] for value in dataset)
    generate.main(["--benchmark", names, "--dataset", *dataset, *(str(p) for k, v in given.items() for p in (f"--{k}", v))])
    return output


@pytest.fixture(scope="session")
def runs(model, tiny_dataset, mmau, tmp_path_factory) -> Path:
    """A run of the model over two benchmarks; one of them has an official protocol."""
    return evaluate(model, tmp_path_factory.mktemp("runs") / "run", [f"avqa={tiny_dataset}", f"mmau={mmau}"])


@pytest.fixture(scope="session")
def released(model, runs, tmp_path_factory) -> Path:
    """The folder as the repository will be."""
    folder = tmp_path_factory.mktemp("release") / "release"
    publish.assemble(model, publish.read_runs([str(runs)], model), REPO_ID, folder)
    return folder

"""A calibration set of the tiny dataset, and the recipe of the verifier on it, in this process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.method.verdicts import ACCEPT, INVALID, REJECT
from sightsound.training.calibration import PARTS, part_of
from tests.support import tiny


# So low that even a verifier which learnt nothing reaches it: what is tested with it is the way, not the figures.
LOW_TARGET = 0.05


def clips(count: int) -> list[str]:
    return [f"clip-{i}" for i in range(count)]


@pytest.fixture(scope="session")
def calibration(questions, tmp_path_factory) -> dict[str, Path]:
    """The tiny dataset under clip names that fill all three parts, and scripted verdicts about it."""
    folder = tmp_path_factory.mktemp("calibration")
    names = {part: [clip for clip in clips(200) if part_of(clip) == part] for part in PARTS}
    chosen = [names[part][i] for i in range(len(questions) // 3) for part in PARTS]
    renamed = [{**question, "media_sha256": clip} for question, clip in zip(questions, chosen, strict=True)]
    parquet.write_parquet(renamed, schema.avqa_audio_features(), folder / "audio" / "data" / "train.parquet")
    write_dataset_card(folder / "audio", "# Renamed\n", {"default": {"train": "data/*.parquet"}})
    thinks = {"I hear dog, then bell.": ACCEPT, "I hear bell, then dog.": REJECT, "I hear drum.": REJECT}
    rows = []
    for question in renamed:
        traces = [tiny.trace(f"<think>{t}</think><answer>A</answer>", 0, t, verdict) for t, verdict in thinks.items()]
        traces.append(tiny.trace("A", 0, None, INVALID))
        rows.append(tiny.trace_row(question, traces, checker="scripted", checker_revision="1", verdict_mode="yes_no"))
    return {"audio": folder / "audio", "verdicts": tiny.write_traces(rows, folder / "verdicts")}


def run_main(main: Callable[[], None], script: str, **flags: Any) -> None:
    """A script in this process: importing torch and its company once is enough. A flag that is True stands alone."""
    given = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in flags.items())
    arguments = [part for parts in given for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        main()


def verifier_flags(calibration: dict[str, Path], student: Path, output: Path) -> dict[str, Any]:
    sizes = {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 1, "save_total_limit": 2, "logging_steps": 1}
    inputs = {**calibration, "model_name_or_path": student, "output_dir": output, "target_precision": LOW_TARGET}
    # As in the YAMLs of real students, the LoRA is on the modules that the student's family names.
    lines = (tiny.REPO / "recipes" / "miniature" / "verifier.yaml").read_text().splitlines(keepends=True)
    config = output.with_name("verifier.yaml")
    config.write_text("".join(line for line in lines if not line.startswith("lora_target_modules")))
    return {"config": config, **inputs, **sizes}


def train(calibration: dict[str, Path], student: Path, output: Path, **flags: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tiny.REPO / "recipes"))
        import verifier
    run_main(verifier.main, "verifier.py", **{**verifier_flags(calibration, student, output), **flags})

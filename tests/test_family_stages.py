"""Every student family in the stages around its training: it is a checker, a verifier, and a model to evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest

from dataset_builders import verdicts
from evaluation import run as evaluation_run
from sightsound.models.family import family_of_processor
from sightsound.models.loading import load_audio_processor, student_class
from sightsound.training.verifier import VERIFIER_MODE, read_verifier
from tests.support import tiny
from tests.support.calibration import calibration, run_main, train
from tests.support.card_rules import validate
from tests.support.families import BUILDERS, build_family


__all__ = ["calibration"]  # the fixture

OTHERS = [name for name in BUILDERS if name != "qwen2_audio"]  # which the tests of each stage use


@pytest.fixture(scope="module", params=OTHERS)
def checkpoint(request, tmp_path_factory) -> Path:
    return build_family(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.mark.parametrize("mode", ["yes_no", "transcript"])
def test_it_checks_traces_in_this_process(mode, checkpoint, calibration, tmp_path) -> None:
    flags = {"dataset": calibration["audio"], "traces": calibration["verdicts"], "checker": checkpoint, "verdict_mode": mode}
    flags |= {"max_tokens": 4, "num_retries": 1, "limit": 2, "output_dir": tmp_path / "out"}
    run_main(verdicts.main, "verdicts.py", **flags)
    rows = tiny.read_rows(tmp_path / "out")
    assert len(rows) == 2 and {row["checker_heard_s"] for row in rows} == {2.0}
    replies = [trace["verdict_text"] for row in rows for trace in row["traces"]]
    assert replies.count(None) == (2 if mode == "yes_no" else 0), "a trace without reasoning is not asked about"


def test_a_dry_run_counts_its_tokens_without_loading_it(checkpoint, calibration, tmp_path, capsys) -> None:
    flags = {"dataset": calibration["audio"], "traces": calibration["verdicts"], "checker": checkpoint, "dry_run": True}
    run_main(verdicts.main, "verdicts.py", **flags, verdict_mode="transcript", output_dir=tmp_path / "out")
    processor = load_audio_processor(str(checkpoint))
    expected = family_of_processor(processor).clip_features(processor, np.zeros(32_000, np.float32)).num_tokens
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("audio tokens")]
    assert line.split()[2] == f"{expected:,.1f}"


def test_a_verifier_is_trained_from_it_and_gives_verdicts(checkpoint, calibration, tmp_path) -> None:
    import torch

    train(calibration, checkpoint, tmp_path / "run")
    verifier = read_verifier(str(tmp_path / "run" / "model"))
    assert verifier is not None and verifier["clips"] == {"held_out": 4, "threshold": 4, "train": 4}
    assert validate((tmp_path / "run" / "model" / "README.md").read_text(), "model") == ([], [])
    loader = student_class(str(checkpoint))
    before, after = (loader.from_pretrained(folder).state_dict() for folder in (checkpoint, tmp_path / "run" / "model"))
    family = family_of_processor(load_audio_processor(str(checkpoint)))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all(family.in_language_model(name) for name in changed)
    flags = {"dataset": calibration["audio"], "traces": calibration["verdicts"], "checker": tmp_path / "run" / "model"}
    run_main(verdicts.main, "verdicts.py", **flags, limit=2, output_dir=tmp_path / "out")
    rows = tiny.read_rows(tmp_path / "out")
    assert {row["verdict_mode"] for row in rows} == {VERIFIER_MODE}
    assert all(trace["verdict_text"].startswith(("p=0.", "p=1.0000")) for row in rows for trace in row["traces"][:3])


def test_it_is_evaluated_by_audio_with_the_controls(checkpoint, tiny_dataset, tmp_path) -> None:
    flags = ["--benchmark", "avqa", "--dataset", str(tiny_dataset), "--split", "validation", "--model", str(checkpoint)]
    flags += ["--controls", "silent", "swapped", "text_only", "--max_tokens", "4", "--output_dir", str(tmp_path / "run")]
    evaluation_run.main(flags)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["outcomes"]) == {"none", "silent", "swapped", "text_only"}
    assert all(outcomes == {"answered": 4} for outcomes in results["outcomes"].values()) and results["clips_cut"] == 0

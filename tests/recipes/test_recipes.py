"""The recipes as a user launches them, two steps each, on tiny models."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.method.prompts import render_trace
from sightsound.method.selection import ARMS
from sightsound.stage import STAGE_FILE, read_settings
from sightsound.training.trained_on import read_trained_on
from tests.support import tiny
from tests.support.card_rules import validate
from tests.support.recipes import MINIATURE, REPO, launch


@pytest.fixture(scope="module")
def corpus(questions: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which every question has two accepted traces with the gold answer."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for question in questions:
        text = render_trace("I hear a dog.", question["answer_text"])
        traces = [tiny.trace(text, question["answer"], "I hear a dog.", "accept")] * 2
        rows.append(tiny.trace_row(question, traces))
    parquet.write_parquet(rows, schema.traces_features(), folder / "data" / "traces" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Corpus\n", {"traces": {"train": "data/traces/*.parquet"}})
    return folder


@pytest.fixture(scope="module")
def sft_run(corpus: Path, tiny_dataset: Path, student_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sft") / "run"
    inputs = {"traces": corpus, "audio": tiny_dataset, "model_name_or_path": student_checkpoint, "output_dir": output}
    sizes = {"max_steps": 2, "per_device_train_batch_size": 24, "logging_steps": 1}
    done = launch("sft", config=MINIATURE / "sft_tts_agfv.yaml", **inputs, **sizes)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_first_sft_loss_equals_a_hand_written_forward(sft_run, corpus, tiny_dataset, student_checkpoint) -> None:
    """The batch holds the whole selection and LoRA starts as the identity, so the first logged loss is known."""
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    from sightsound.method.selection import select
    from sightsound.training.collator import CompletionCollator

    rows = select(parquet.open_dataset(str(corpus), "train", "traces"), "tts_agfv")
    assert len(rows) == 24
    audio = parquet.AudioById(parquet.open_dataset(str(tiny_dataset), "train"))
    batch = CompletionCollator(AutoProcessor.from_pretrained(student_checkpoint))(
        [{**r, "audio": audio[r["id"]]} for r in rows]
    )
    labels = batch.pop("labels")[:, 1:]
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    with torch.no_grad():
        logps = torch.log_softmax(model(**batch).logits[:, :-1].double(), dim=-1)
    target = labels != -100
    expected = -logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0][target].mean()
    log = json.loads((sft_run / "trainer_state.json").read_text())["log_history"]
    assert abs(log[0]["loss"] - expected.item()) < 1e-5
    assert log[1]["loss"] < log[0]["loss"]


def test_lora_is_on_the_language_model_only(sft_run: Path) -> None:
    from safetensors import safe_open

    with safe_open(sft_run / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        names = list(adapter.keys())
    assert len(names) == 2 * 7 * 3  # A and B of seven projections in three layers
    assert not [name for name in names if "audio_tower" in name or "projector" in name]


def test_merged_checkpoint_is_base_plus_adapter(sft_run: Path, student_checkpoint: Path) -> None:
    from peft import PeftModel
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    AutoProcessor.from_pretrained(sft_run / "model")
    merged = Qwen2AudioForConditionalGeneration.from_pretrained(sft_run / "model").state_dict()
    base = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    start = {name: weight.clone() for name, weight in base.state_dict().items()}
    expected = PeftModel.from_pretrained(base, str(sft_run / "adapter")).merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in expected)
    assert any(not torch.equal(merged[name], start[name]) for name in start)


@pytest.mark.parametrize("name", ["adapter", "model"])
def test_the_card_of_a_run_is_one_that_the_hub_takes(sft_run: Path, name: str) -> None:
    card = (sft_run / name / "README.md").read_text()
    assert validate(card, "model") == ([], []) and "| used in training | 12 |" in card and "24 rows were trained on." in card
    assert "\npython recipes/sft.py --config " in card and "{{" not in card and "min since the last start" in card


def test_every_selected_trace_is_in_the_ledger_of_the_run(sft_run: Path) -> None:
    ledger = tiny.read_ledger(sft_run)
    assert len(ledger) == 24
    assert {row["outcome"] for row in ledger} == {"used"}


def test_grpo_starts_from_the_merged_model_and_writes_a_model(sft_run, corpus, tiny_dataset, tmp_path) -> None:
    from transformers import Qwen2AudioForConditionalGeneration

    base = shutil.copytree(sft_run, tmp_path / "sft")  # as if validation had chosen it
    stage = json.loads((base / STAGE_FILE).read_text())
    stage["settings"] |= {"load_best_model_at_end": True, "audio": "alice/avqa"}
    (base / STAGE_FILE).write_text(json.dumps(stage))
    inputs = {"traces": corpus, "audio": tiny_dataset, "model_name_or_path": base / "model", "output_dir": tmp_path / "run"}
    sizes = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8}
    done = launch("grpo", config=MINIATURE / "grpo_tts_agfv.yaml", **inputs, **sizes, logging_steps=1)
    assert done.returncode == 0, done.stderr[-3000:]
    Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert {"reward", "kl", "rewards/accuracy_reward/mean", "rewards/format_reward/mean"} <= log[0].keys()
    assert len(tiny.read_ledger(tmp_path / "run")) == 12  # one per question, not per trace
    settings = read_settings(tmp_path / "run")
    assert settings["base_chosen_by"] == [["alice/avqa", "validation"]] and "reward_funcs" not in settings
    trained = read_trained_on(str(tmp_path / "run" / "model"))
    of_base = [read_trained_on(str(sft_run / name)) for name in ("model", "adapter")]
    assert len(trained) == 12 and of_base == [trained, trained]
    has_reward = any(entry.get("rewards/accuracy_reward/mean") for entry in log)
    assert done.stdout.strip().splitlines()[-1].startswith("WITHOUT REWARD: ") is not has_reward


@pytest.mark.parametrize(
    "flags",
    [
        {"selection": "nonsense"},
        {"no_such_field": "1"},
        {"push_to_hub": "true"},
        {"lora_target_modules": ".*no_such_layers.*"},
        {"lora_target_modules": "all-linear"},
        {"resume_from_checkpoint": "no/such-checkpoint"},
        {"selection": "ground_truth"},
        {"load_in_4bit": "true"},
        {"max_steps": "few"},
        {"report_to": "comet_ml"},
        {"model_name_or_path": None},
    ],
)
def test_bad_arguments_are_one_clear_line(
    flags, corpus, tiny_dataset, student_checkpoint, tmp_path, monkeypatch, capsys
) -> None:
    inputs = {"traces": corpus, "audio": tiny_dataset, "model_name_or_path": student_checkpoint, "output_dir": tmp_path / "run"}
    given = {name: value for name, value in (inputs | flags).items() if value is not None}
    parts = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", "--config", str(MINIATURE / "sft_cot.yaml"), *parts])
    with pytest.raises(SystemExit) as stopped:  # here, and not in a process of its own: each would import TRL again
        runpy.run_path(str(REPO / "recipes" / "sft.py"), run_name="__main__")
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (last.startswith("error: ") and next(iter(flags)) in last) or "nonsense" in last


def test_rewards_are_named_in_the_yaml(tmp_path, monkeypatch, capsys) -> None:
    config = tmp_path / "grpo.yaml"
    config.write_text((MINIATURE / "grpo_tts_agfv.yaml").read_text() + "reward_funcs: [accuracy_reward, speed_reward]\n")
    inputs = ["--traces", "t", "--audio", "a", "--model_name_or_path", "m", "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["recipes/grpo.py", "--config", str(config), *inputs])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPO / "recipes" / "grpo.py"), run_name="__main__")
    message = "reward_funcs: unknown reward 'speed_reward'; expected one or more of accuracy_reward, format_reward"
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"error: {message}"


@pytest.mark.parametrize(
    "text", ["selection: cot", "selection: [cot", "- selection"], ids=["fields missing", "no YAML", "a list"]
)
def test_an_unusable_config_is_one_clear_line(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trl import ModelConfig, SFTConfig

    from sightsound.cli import InputError
    from sightsound.training.recipe import parse_config

    monkeypatch.syspath_prepend(str(REPO / "recipes"))
    import sft

    (tmp_path / "recipe.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["sft.py", "--config", str(tmp_path / "recipe.yaml")])
    with pytest.raises(InputError, match=r"see --help for the fields that this recipe accepts$") as refused:
        parse_config((sft.SFTScriptArguments, SFTConfig, ModelConfig))
    assert "\n" not in str(refused.value)


def test_grpo_on_too_few_questions_for_a_batch_is_refused(
    corpus, tiny_dataset, student_checkpoint, tmp_path, monkeypatch, capsys
) -> None:
    inputs = {"traces": corpus, "audio": tiny_dataset, "model_name_or_path": student_checkpoint, "output_dir": tmp_path / "run"}
    parts = [str(part) for name, value in inputs.items() for part in (f"--{name}", value)]
    config = ["--config", str(MINIATURE / "grpo_tts_agfv.yaml"), "--per_device_train_batch_size", "104"]
    monkeypatch.setattr(sys, "argv", ["recipes/grpo.py", *config, *parts])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPO / "recipes" / "grpo.py"), run_name="__main__")
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "12 questions do not fill one batch of 13 (per_device_train_batch_size 104, " in line
    assert "; set per_device_train_batch_size: 96 and gradient_accumulation_steps: 1 (without steps_per_generation" in line
    assert not (tmp_path / "run").exists(), "the corrected command may use the folder"


def test_every_arm_has_a_recipe_that_its_dataclasses_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import GRPOConfig, ModelConfig, SFTConfig

    from sightsound.training.recipe import parse_config

    monkeypatch.syspath_prepend(str(REPO / "recipes"))
    import grpo
    import sft

    required = ["--traces", "t", "--audio", "a", "--model_name_or_path", "m", "--output_dir", "o"]
    for path in sorted(MINIATURE.glob("sft_*.yaml")):
        monkeypatch.setattr(sys, "argv", ["sft.py", "--config", str(path), *required])
        script_args, training_args, model_args = parse_config((sft.SFTScriptArguments, SFTConfig, ModelConfig))
        assert script_args.selection == path.stem.removeprefix("sft_") and script_args.selection in ARMS
        assert model_args.lora_target_modules is None and model_args.use_peft  # those of the student's family
        assert training_args.gradient_checkpointing is False
    monkeypatch.setattr(sys, "argv", ["grpo.py", "--config", str(MINIATURE / "grpo_tts_agfv.yaml"), *required])
    _, grpo_args, _ = parse_config((grpo.GRPOScriptArguments, GRPOConfig, ModelConfig))
    assert (grpo_args.loss_type, grpo_args.beta) == ("grpo", 0.04)
    assert grpo_args.scale_rewards == "group" and not grpo_args.use_bias_correction_kl

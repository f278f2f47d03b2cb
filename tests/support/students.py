"""The folders of recipes/ for real students: their YAMLs, how recipes read them, and models of the released sizes."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.tiny import REPO


RECIPES = REPO / "recipes"
# As `STUDENT` of recipes/run.sh names them. The miniature's folder has no README.md, and recipes/videos no YAML.
STUDENTS = sorted(path.parent.name for path in RECIPES.glob("*/README.md") if any(path.parent.glob("sft*.yaml")))
SFT_ARMS = ["agfv", "cot", "ground_truth", "label", "tts_agfv"]
GRPO_ARMS = ["label", "tts_agfv"]

# What the released config.json files say where transformers' defaults differ.
QWEN2_5_7B = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
QWEN2_5_3B = {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2}
QWEN2_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
WHISPER = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128}


def yaml_of(student: str, stage: str, arm: str) -> str:
    """The arm's own YAML, or the one of all arms, as recipes/run.sh takes it."""
    own = RECIPES / student / f"{stage}_{arm}.yaml"
    return str(own if own.is_file() else RECIPES / student / f"{stage}.yaml")


def recipe_parser(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any, Any]]:
    """A function that reads a recipe's command line as the recipe reads it."""
    from transformers import TrainingArguments
    from trl import GRPOConfig, ModelConfig, SFTConfig

    from sightsound.training.recipe import parse_config

    monkeypatch.syspath_prepend(str(RECIPES))
    import grpo
    import sft
    import verifier

    dataclasses = {
        "sft": (sft.SFTScriptArguments, SFTConfig, ModelConfig),
        "grpo": (grpo.GRPOScriptArguments, GRPOConfig, ModelConfig),
        "verifier": (verifier.VerifierScriptArguments, TrainingArguments, ModelConfig),
    }

    def parse(recipe: str, *arguments: str) -> tuple[Any, Any, Any]:
        # Where there is no GPU, `TrainingArguments` refuses bfloat16 without it.
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments, "--use_cpu", "true"])
        monkeypatch.chdir(REPO)
        return parse_config(dataclasses[recipe])

    return parse


def released_config(student: str) -> Any:
    from transformers import AudioFlamingo3Config, Qwen2_5OmniThinkerConfig, Qwen2AudioConfig

    if student == "qwen2_audio_7b":
        text = {"model_type": "qwen2", "intermediate_size": 11008, "vocab_size": 156032, "tie_word_embeddings": False}
        audio = {"model_type": "qwen2_audio_encoder", **WHISPER}
        return Qwen2AudioConfig(audio_config=audio, text_config=text | QWEN2_7B, architectures=[ARCHITECTURES[student]])
    if student == "audio_flamingo_3":
        text = {"model_type": "qwen2", "intermediate_size": 18944, "vocab_size": 151672, "tie_word_embeddings": False}
        return AudioFlamingo3Config(text_config=text | QWEN2_5_7B, architectures=[ARCHITECTURES[student]])
    sizes, rest = {
        "qwen2_5_omni_3b": (QWEN2_5_3B, {"intermediate_size": 11008, "vocab_size": 151936}),
        "qwen2_5_omni_7b": (QWEN2_5_7B, {"intermediate_size": 18944, "vocab_size": 152064}),
    }[student]
    width = sizes["hidden_size"]
    return Qwen2_5OmniThinkerConfig(
        text_config=sizes | rest,
        audio_config={"output_dim": width},
        vision_config={"hidden_size": 1280, "out_hidden_size": width},
    )


ARCHITECTURES = {
    "qwen2_audio_7b": "Qwen2AudioForConditionalGeneration",
    "audio_flamingo_3": "AudioFlamingo3ForConditionalGeneration",
}


def released_model(student: str) -> Any:
    """The student's class with the released sizes, on torch's `meta` device."""
    import torch

    from sightsound.models.family import family_of

    config = released_config(student)
    with torch.device("meta"):
        return family_of(config).model_class(config)(config)

"""A student family is added by one file: loading, batches, LoRA, freezing, saving and vLLM's names come from it."""

import json
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from trl import ModelConfig

from sightsound import models
from sightsound.cli import InputError
from sightsound.models.family import Licence, StudentFamily, family_of, family_of_processor, released_licence, student_families
from sightsound.models.loading import load_audio_processor, load_generator, student_class
from sightsound.training.checkpoints import save_checkpoint
from sightsound.training.collator import CompletionCollator
from sightsound.training.recipe import lora_config
from tests.support.tiny import REPO
from tests.support.trainers import make_rows, make_trainer


# The one file: a model of transformers that no module of the project describes.
GLM_ASR = """
from sightsound.models.family import Licence, StudentFamily


class GlmAsr(StudentFamily):
    model_types = ("glmasr",)
    processors = ("GlmAsrProcessor",)
    licenses = {"somebody/glm": Licence("cc-by-nc-4.0")}
    architecture = "GlmAsrForConditionalGeneration"
    feature_names = ("input_features", "input_features_mask")
    never_trained = ("model.audio_tower.norm",)
    lora_target_modules = r"model\\.language_model\\.layers\\.\\d+\\.mlp\\.up_proj"

    def processor_facts(self, config, processor):
        return {"mel bins": (processor.feature_extractor.feature_size, config.audio_config.num_mel_bins)}  # no fixed positions

    def encode(self, processor, texts, *, audio=(), videos=(), **options):
        encoded = super().encode(processor, texts, audio=audio, videos=videos, **options)
        if "return_tensors" not in options:  # this processor pads by default
            rows = zip(encoded["input_ids"].tolist(), encoded["attention_mask"].tolist())
            encoded["input_ids"] = [[i for i, shown in zip(ids, mask) if shown] for ids, mask in rows]
        return encoded

    def released_config(self, config):
        return {**super().released_config(config), "released_by": "glm_asr"}

    def vllm_name(self, name):
        return "glm_asr." + name


FAMILY = GlmAsr()
"""


@pytest.fixture
def glm_asr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudentFamily:
    """The family of a module that only this folder holds."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "glm_asr.py").write_text(GLM_ASR)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "sightsound.models.glm_asr", raising=False)
    return next(family for family in student_families() if type(family).__name__ == "GlmAsr")


@pytest.fixture
def checkpoint(student_checkpoint: Path, glm_asr: StudentFamily, tmp_path: Path) -> Path:
    """A GLM-ASR of the tiny student's size, with its tokenizer and template."""
    from transformers import (
        AutoConfig,
        AutoProcessor,
        GlmAsrConfig,
        GlmAsrForConditionalGeneration,
        GlmAsrProcessor,
        WhisperFeatureExtractor,
    )

    student, like = AutoProcessor.from_pretrained(student_checkpoint), AutoConfig.from_pretrained(student_checkpoint)
    # Four frames of the encoder, of 64 numbers each, are one token.
    audio = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    audio |= {"num_key_value_heads": 4, "num_mel_bins": 128}
    tokens = {"audio_token_id": like.audio_token_id, "tie_word_embeddings": False}
    config = GlmAsrConfig(audio_config=audio, text_config=like.text_config.to_dict(), **tokens)
    torch.manual_seed(0)
    extractor = WhisperFeatureExtractor(feature_size=128, hop_length=250, chunk_length=2, n_fft=400)
    processor = GlmAsrProcessor(
        extractor, student.tokenizer, chat_template=student.chat_template, audio_token=student.audio_token
    )
    save_checkpoint(GlmAsrForConditionalGeneration(config), processor, tmp_path / "glm_asr")
    return tmp_path / "glm_asr"


def test_the_first_family_is_found_by_model_type_and_by_processor(student_checkpoint, teacher_checkpoint) -> None:
    from transformers import AutoConfig

    assert "Qwen2Audio" in [type(family).__name__ for family in student_families()]
    assert type(family_of(AutoConfig.from_pretrained(student_checkpoint))).__name__ == "Qwen2Audio"
    assert type(family_of_processor(load_audio_processor(str(student_checkpoint)))).__name__ == "Qwen2Audio"
    assert type(family_of(AutoConfig.from_pretrained(teacher_checkpoint))) is StudentFamily
    assert released_licence("Qwen/Qwen2-Audio-7B-Instruct") == Licence("apache-2.0")
    assert released_licence("somebody/glm") is None


def test_a_family_of_one_file_is_loaded_and_saved_as_it_says(checkpoint, glm_asr) -> None:
    model, processor, _ = load_generator(str(checkpoint))
    assert family_of(model.config) is glm_asr is family_of_processor(processor)
    assert type(load_audio_processor(str(checkpoint))).__name__ == "GlmAsrProcessor"
    assert student_class(str(checkpoint)) is type(model) and type(model).__name__ == glm_asr.architecture
    written = json.loads((checkpoint / "config.json").read_text())
    assert written["released_by"] == "glm_asr" and written["tie_word_embeddings"] is False
    assert glm_asr.vllm_name("lm_head.weight") == "glm_asr.lm_head.weight"
    assert released_licence("somebody/glm") == Licence("cc-by-nc-4.0")


def test_a_family_of_one_file_is_collated_and_trained(checkpoint, glm_asr, questions) -> None:
    """Rows of unequal lengths, under the family's own names of the features; the loss does not depend on the padding."""
    model, processor, _ = load_generator(str(checkpoint))
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": text}], "completion": text, "audio": question["audio"]}
        for text, question in zip(["dog", "a bell, then a dog"], questions, strict=False)
    ]
    collator = CompletionCollator(processor)
    batch = collator(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels", *glm_asr.feature_names}
    assert (batch["input_ids"] == model.config.audio_token_id).sum(dim=1).tolist() == [16, 16]
    assert [collator.num_tokens(row, 2.0) for row in rows] == batch["attention_mask"].sum(dim=1).tolist()
    alone = [collator([row]) for row in rows]
    with torch.no_grad():
        losses = [model.eval()(**each).loss.item() for each in alone]
        together = model(**batch).loss.item()
    weights = [int((each["labels"] != -100).sum()) for each in alone]
    assert together == pytest.approx(np.average(losses, weights=weights), abs=1e-5)


def test_lora_and_freezing_are_those_of_the_family(checkpoint, glm_asr) -> None:
    model, _, _ = load_generator(str(checkpoint))
    glm_asr.freeze_fixed_parts(model)
    assert not model.model.audio_tower.norm.weight.requires_grad and model.model.audio_tower.conv1.weight.requires_grad
    arguments = ModelConfig(model_name_or_path=str(checkpoint), use_peft=True)
    adapted = get_peft_model(model, lora_config(arguments))
    assert adapted.base_model.targeted_module_names == [f"model.language_model.layers.{i}.mlp.up_proj" for i in range(3)]
    assert glm_asr.audio_tower_of(adapted) is model.model.audio_tower
    arguments.lora_target_modules = r".*q_proj"
    with pytest.raises(InputError, match=r"matches 2 modules outside the language model \(first: model.audio_tower"):
        lora_config(arguments)


@pytest.mark.parametrize("share_prompts", [True, False])
def test_grpo_scores_and_samples_a_family_of_one_file(checkpoint, glm_asr, questions, share_prompts, tmp_path) -> None:
    """Each clip is encoded once for its completions, and the frozen reference is of the same class."""
    options = {"share_prompts": share_prompts, "freeze_audio_tower": True, "max_steps": 1}
    trainer = make_trainer(checkpoint, make_rows(questions), tmp_path / "grpo", **options)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert log["audio_tower/rows_saved"] > 0 and log["kl"] < 1e-6
    assert type(trainer.ref_model).__name__ == glm_asr.architecture
    assert not any(weight.requires_grad for weight in trainer.model.model.audio_tower.parameters())


def test_a_model_without_audio_is_refused_with_the_families_that_there_are(teacher_checkpoint, glm_asr) -> None:
    with pytest.raises(InputError, match=r"expected an audio model, one of .*qwen2_audio, .*glmasr$"):
        load_audio_processor(str(teacher_checkpoint))


def test_the_plugin_of_vllm_registers_what_families_replace(monkeypatch) -> None:
    """With vLLM's registry alone: the model itself is imported by vLLM, by name."""
    registered = {}
    registry = SimpleNamespace(register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    plugins = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    EntryPoint("sightsound", plugins["sightsound"], "vllm.general_plugins").load()()
    assert registered["Qwen2AudioForConditionalGeneration"] == "sightsound.models.qwen2_audio:Qwen2AudioWithLoRA"

"""A saved checkpoint loads with every weight; an incomplete one is never resumed from."""

import json
import shutil

import pytest
from safetensors import safe_open

from sightsound.cli import InputError
from sightsound.models.loading import load_audio_processor, load_generator
from sightsound.training.checkpoints import (
    check_adapter_checkpoint,
    checkpoint_to_resume,
    last_complete_checkpoint,
    load_full_weights,
    save_checkpoint,
)


def keys_of(checkpoint) -> set[str]:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.fixture(scope="module")
def student(student_checkpoint):
    """The student as `from_pretrained` gives it back, and its processor."""
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    return model, AutoProcessor.from_pretrained(student_checkpoint)


# Of each kind, a name in model.safetensors.index.json of Qwen/Qwen2-Audio-7B-Instruct.
RELEASED_NAMES = {
    "audio_tower.conv1.weight",
    "audio_tower.embed_positions.weight",
    "audio_tower.layers.0.self_attn.k_proj.weight",
    "audio_tower.layer_norm.bias",
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.mlp.down_proj.weight",
    "language_model.model.norm.weight",
    "multi_modal_projector.linear.bias",
}
RELEASED_PREFIXES = ("audio_tower.", "language_model.lm_head.", "language_model.model.layers.", "multi_modal_projector.linear.")


def test_a_new_student_has_the_key_names_of_the_released_model(student_checkpoint):
    names = keys_of(student_checkpoint)
    assert names >= RELEASED_NAMES
    others = {name for name in names if not name.startswith(RELEASED_PREFIXES)}
    assert others == {"language_model.model.embed_tokens.weight", "language_model.model.norm.weight"}


def test_a_student_that_was_loaded_is_saved_under_the_same_names_again(student, student_checkpoint, tmp_path):
    save_checkpoint(*student, tmp_path / "again")
    assert keys_of(tmp_path / "again") == keys_of(student_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "nothing temporary is left"


def test_every_weight_is_read_back(student_checkpoint, tmp_path):
    import torch
    from transformers import Qwen2AudioForConditionalGeneration

    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    save_checkpoint(model, _processor(student_checkpoint), tmp_path / "model")
    loaded = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())


def _processor(checkpoint):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint)


def test_the_output_layer_is_declared_untied(student_checkpoint, teacher_checkpoint):
    for checkpoint in (student_checkpoint, teacher_checkpoint):
        assert json.loads((checkpoint / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_processor_is_read_back_with_its_template_and_its_window(student):
    _, processor = student
    turn = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert prompt.count(processor.audio_token) == 1
    assert prompt.endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    extractor = processor.feature_extractor
    assert (extractor.chunk_length, extractor.hop_length, extractor.sampling_rate) == (2, 320, 16_000)


def test_a_teacher_is_read_back_complete(teacher_checkpoint):
    from transformers import Qwen2_5_VLForConditionalGeneration

    loaded, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(teacher_checkpoint, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert _processor(teacher_checkpoint).video_processor.do_sample_frames is False
    assert loaded.generation_config.eos_token_id == loaded.config.text_config.eos_token_id


def test_a_checkpoint_replaces_the_old_one_and_what_a_kill_left(student, tmp_path):
    final, temporary = tmp_path / "model", tmp_path / ".model.tmp"
    for folder in (final, temporary):
        folder.mkdir()
        (folder / "stale.safetensors").write_bytes(b"half")
    save_checkpoint(*student, final)
    assert not (final / "stale.safetensors").exists()
    assert not temporary.exists()


def test_loading_for_a_resume_restores_every_weight(student_checkpoint):
    import torch
    from transformers import Qwen2AudioForConditionalGeneration

    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    saved = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_full_weights(model, str(student_checkpoint))
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())


def test_weights_in_a_pickle_are_not_read(student, student_checkpoint, tmp_path):
    import torch

    folder = shutil.copytree(student_checkpoint, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(student[0].state_dict(), folder / "pytorch_model.bin")
    message = f"{folder} has no model.safetensors: weights are read from safetensors alone"
    with pytest.raises(InputError, match=message):
        load_generator(str(folder))
    with pytest.raises(InputError, match=message):
        load_full_weights(student[0], str(folder))


def checkpoint(folder, step: int, state: bytes | None = b"") -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    if state is not None:
        (path / "trainer_state.json").write_bytes(state or json.dumps({"global_step": step}).encode())


def test_the_newest_checkpoint_by_number_is_resumed(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert len(list(tmp_path.iterdir())) == 3, "complete checkpoints stay"


@pytest.mark.parametrize("state", [None, b'{"global_step": 2', b"\0\0\0\0", b"\xff\xfe\xfa"])
def test_an_incomplete_checkpoint_is_removed(tmp_path, state):
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, state)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_a_checkpoint_can_be_named(tmp_path):
    for step in (10, 20):
        checkpoint(tmp_path, step)
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-10"), tmp_path / "elsewhere") == str(tmp_path / "checkpoint-10")
    for asked in (None, "true", "True"):
        assert checkpoint_to_resume(asked, tmp_path) == str(tmp_path / "checkpoint-20")
    with pytest.raises(InputError, match="checkpoint-30: expected a complete checkpoint-N folder of a run"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-30"), tmp_path)


def test_the_weights_of_another_model_are_not_resumed_from(student, student_checkpoint, teacher_checkpoint, tmp_path):
    from transformers import AutoConfig, Qwen2AudioForConditionalGeneration

    model, processor = student
    with pytest.raises(InputError, match=r"is a checkpoint of qwen2_5_vl, and not of the qwen2_audio to be trained"):
        load_full_weights(model, str(teacher_checkpoint))
    with pytest.raises(InputError, match=r"is a checkpoint of no whole model"):
        load_full_weights(model, str(tmp_path))
    config = AutoConfig.from_pretrained(student_checkpoint)
    config.text_config.intermediate_size *= 2
    save_checkpoint(Qwen2AudioForConditionalGeneration(config), processor, tmp_path / "wider")
    with pytest.raises(InputError, match=r"of another model: 9 weights differ \(first: model.language_model.layers.0.mlp"):
        load_full_weights(model, str(tmp_path / "wider"))
    config.text_config.intermediate_size //= 2
    config.text_config.num_hidden_layers += 1
    config.text_config.layer_types.append("full_attention")
    save_checkpoint(Qwen2AudioForConditionalGeneration(config), processor, tmp_path / "deeper")
    with pytest.raises(InputError, match=r"of another model: 12 weights differ \(first: model.language_model.layers.3"):
        load_full_weights(model, str(tmp_path / "deeper"))


def test_a_lora_of_another_model_is_not_resumed_from(student_checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2AudioForConditionalGeneration

    def with_lora(rank):
        model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
        return get_peft_model(model, LoraConfig(r=rank, target_modules=r".*language_model\.layers\.\d+\.mlp\.up_proj"))

    model, other = with_lora(2), with_lora(4)
    for name, each in (("own", model), ("rank", other)):
        each.save_pretrained(tmp_path / name)
    check_adapter_checkpoint(model, str(tmp_path / "own"))
    with pytest.raises(
        InputError, match=r"with other LoRA settings: 6 weights differ \(first: .*, \(4, 64\) there, \(2, 64\) here"
    ):
        check_adapter_checkpoint(model, str(tmp_path / "rank"))
    with pytest.raises(InputError, match="holds no LoRA"):
        check_adapter_checkpoint(model, str(student_checkpoint))
    config = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "other/base"}))
    with pytest.raises(InputError, match="is a LoRA on other/base, and not on"):
        check_adapter_checkpoint(model, str(tmp_path / "own"))


def test_a_processor_and_a_model_that_do_not_belong_together_are_refused(student_checkpoint, teacher_checkpoint, tmp_path):
    assert load_audio_processor(str(student_checkpoint)).audio_token == "<|AUDIO|>"
    with pytest.raises(InputError, match=r"is a model of type qwen2_5_vl; expected an audio model, one of .*qwen2_audio"):
        load_audio_processor(str(teacher_checkpoint))
    changes = {
        "id of the audio token: 3, the model's is 7": lambda config: config.update(audio_token_id=7, audio_token_index=7),
        "tokens: .*, the model has 100": lambda config: config["text_config"].update(vocab_size=100),
        "mel bins: 128, the model's is 80": lambda config: config["audio_config"].update(num_mel_bins=80),
        "frames of a window: 100, the model's is 3000": lambda c: c["audio_config"].update(max_source_positions=1500),
    }
    for i, (wrong, change) in enumerate(changes.items()):
        shutil.copytree(student_checkpoint, tmp_path / str(i))
        config = json.loads((tmp_path / str(i) / "config.json").read_text())
        change(config)
        (tmp_path / str(i) / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=rf"is another model's \({wrong.replace('3,', '[0-9]+,')}\); save the model's own"):
            load_audio_processor(str(tmp_path / str(i)))
    (tmp_path / "0" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"is an adapter; give the merged model"):
        load_audio_processor(str(tmp_path / "0"))


def test_the_error_for_the_folder_of_a_training_run_names_its_model(student_checkpoint, tmp_path):
    run = tmp_path / "grpo"
    run.mkdir()
    (run / "trainer_state.json").write_text("{}")
    for load in (load_audio_processor, load_generator):
        with pytest.raises(InputError, match=r"expected a model folder or a Hub model id$"):
            load(str(run))
    (run / "model").symlink_to(student_checkpoint)
    for load in (load_audio_processor, load_generator):
        with pytest.raises(InputError, match=rf"{run} cannot be loaded .*; did you mean {run / 'model'}\?$"):
            load(str(run))

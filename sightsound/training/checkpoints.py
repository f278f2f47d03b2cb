"""
Checkpoints that load: written atomically, read back and compared; resume from the last complete one.

transformers 5.17 writes a Qwen2-Audio that was built from a config under key names that no released checkpoint has
(`language_model.model.model.*`), and `Trainer` resumes full-parameter training of this architecture by loading nothing
(key names differ, `strict=False`; huggingface/transformers#43701). Both are dealt with here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.stage import replace_folder


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

_DOUBLED_PREFIX = re.compile(r"^language_model\.model\.model\.")


def _released_key(key: str) -> str:
    """The name a weight has in the released Qwen2-Audio checkpoints, which vLLM expects too."""
    return _DOUBLED_PREFIX.sub("language_model.model.", key)


def _repair(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        if any(_DOUBLED_PREFIX.match(key) for key in weights):
            save_file({_released_key(key): tensor for key, tensor in weights.items()}, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {_released_key(key): shard for key, shard in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2))
    config = json.loads((folder / "config.json").read_text())
    # Left out when it equals the class default, and the default of the *text* config is what vLLM then assumes: tied.
    config["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@contextmanager
def safetensors_only(model: str) -> Iterator[None]:
    """
    For the loading of a model with `use_safetensors=True`: without it transformers would fall back to a pickle.

    Raises:
        `InputError`: The model has no weights in safetensors.
    """
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        told = "weights are read from safetensors alone, since a pickle such as pytorch_model.bin can run any code"
        raise InputError(f"{model} has no model.safetensors: {told}; convert it, or give a revision that has one") from error


def load_processor(model: str, revision: str | None = None) -> Any:
    """
    The processor of a local folder or a Hub model.

    Raises:
        `InputError`: There is no such model, or it has no processor.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        told = f"expected a model folder or a Hub model id{meant_model(model)}"
        raise InputError(f"{model} cannot be loaded ({reason}); {told}") from error


def meant_model(folder: str | Path) -> str:
    """What an error about a folder without a model ends with, where a recipe has written one into it."""
    inner = Path(folder) / "model"
    return f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""


def load_audio_processor(model: str, revision: str | None = None) -> Any:
    """
    The processor of an audio language model that is about to be trained, if the two belong together.

    Nothing but the config is read of the model: hours may pass before a wrong id in a batch is noticed, if it ever is.

    Raises:
        `InputError`: As for `load_processor`; the folder holds an adapter, no audio model, or another model's processor.
    """
    from transformers import AutoConfig

    if (Path(model) / "adapter_config.json").is_file():
        raise InputError(f"{model} is an adapter; give the merged model, which training writes beside it (model/)")
    processor = load_processor(model, revision)
    config = AutoConfig.from_pretrained(model, revision=revision)
    if not hasattr(config, "audio_config") or not hasattr(config, "audio_token_id"):
        raise InputError(f"{model} is a model of type {config.model_type}; expected an audio model like Qwen2-Audio")
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is None:
        raise InputError(f"{model} has a {type(processor).__name__} and no processor for sound; save the model's own beside it")
    audio, tokenizer = config.audio_config, processor.tokenizer
    facts = {
        "id of the audio token": (tokenizer.convert_tokens_to_ids(processor.audio_token), config.audio_token_id),
        "mel bins": (extractor.feature_size, audio.num_mel_bins),
        "frames of a window": (extractor.nb_max_frames, 2 * audio.max_source_positions),  # its convolution takes every second
    }
    wrong = [f"{name}: {has}, the model's is {expected}" for name, (has, expected) in facts.items() if has != expected]
    if len(tokenizer) > config.text_config.vocab_size:
        wrong.append(f"tokens: {len(tokenizer)}, the model has {config.text_config.vocab_size}")
    if wrong:
        raise InputError(f"the processor in {model} is another model's ({'; '.join(wrong)}); save the model's own there")
    return processor


def save_adapter(
    model: Any, processor: ProcessorMixin, path: str | Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a LoRA (safetensors) and the processor of its model; put the folder in place whole. `weights`: as below."""
    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=weights)
    processor.save_pretrained(temporary)
    replace_folder(temporary, final)


def save_checkpoint(
    model: PreTrainedModel, processor: ProcessorMixin, path: str | Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """
    Write weights (safetensors), config, generation config, processor and chat template; put the folder in place whole.

    Args:
        weights (`dict`, *optional*): All of them, where the model itself holds only a part (ZeRO-3, FSDP).

    Raises:
        `RuntimeError`: The written checkpoint does not give back the model's weights.
    """
    import torch

    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(temporary, state_dict=weights)
    processor.save_pretrained(temporary)
    _repair(temporary)
    reloaded = type(model).from_pretrained(temporary, dtype=model.dtype, use_safetensors=True).state_dict()
    for name, weight in (weights or model.state_dict()).items():
        if not torch.equal(weight.cpu(), reloaded[name]):
            raise RuntimeError(f"{temporary}: {name} does not come back as it was written; the checkpoint is not usable")
    replace_folder(temporary, final)


def freeze_positions(model: PreTrainedModel) -> None:
    """The audio tower's sinusoids are no weights to train: the class says so, and `from_pretrained` forgets it."""
    model.model.audio_tower.embed_positions.requires_grad_(False)


def load_full_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """
    Load a full-parameter checkpoint into a model in memory; unlike `Trainer`, every weight or an error.

    Raises:
        `InputError`: It is no checkpoint of this model.
    """
    config = json.loads((Path(checkpoint) / "config.json").read_text()) if Path(checkpoint, "config.json").is_file() else {}
    if config.get("model_type") != model.config.model_type:
        found = config.get("model_type", "no whole model")
        raise InputError(f"{checkpoint} is a checkpoint of {found}, and not of the {model.config.model_type} to be trained")
    with safetensors_only(checkpoint):
        loaded, told = type(model).from_pretrained(
            checkpoint, dtype=model.dtype, use_safetensors=True, output_loading_info=True
        )
    found, expected = ({name: weight.shape for name, weight in m.state_dict().items()} for m in (loaded, model))
    wrong = {*told["missing_keys"], *told["unexpected_keys"]}
    wrong |= {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    if wrong:
        raise InputError(f"{checkpoint} is a checkpoint of another model: {len(wrong)} weights differ (first: {min(wrong)})")
    model.load_state_dict(loaded.state_dict(), strict=True)


def check_adapter_checkpoint(model: Any, checkpoint: str) -> None:
    """
    Make sure that a checkpoint holds the LoRA of this model; PEFT would only warn of weights that it does not find.

    Raises:
        `InputError`: It holds none, of other shapes or places, or for another base model.
    """
    check_adapter_weights(model, checkpoint)
    base = json.loads((Path(checkpoint) / "adapter_config.json").read_text())["base_model_name_or_path"]
    ours = model.peft_config[model.active_adapters[0]].base_model_name_or_path
    if not same_model(base, ours):
        raise InputError(f"{checkpoint} is a LoRA on {base}, and not on {ours}; give the model that it was trained on")


def check_adapter_weights(model: Any, checkpoint: str) -> None:
    """
    The part of `check_adapter_checkpoint` that looks at places and shapes.

    Raises:
        `InputError`: The folder holds no LoRA, or one of other places or shapes than the model's.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    file = Path(checkpoint) / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"{checkpoint} holds no LoRA; expected a checkpoint of a run with these LoRA settings")
    with safe_open(file, "pt") as saved:
        found = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118 - no mapping
    expected = {name: tuple(weight.shape) for name, weight in get_peft_model_state_dict(model).items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise InputError(
            f"{checkpoint} holds the LoRA of another model, or with other LoRA settings: {len(wrong)} weights differ (first: "
            f"{wrong[0]}, {found.get(wrong[0])} there, {expected.get(wrong[0])} here)"
        )


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: a folder's may be relative, or lead over a link."""
    resolved = [str(Path(name).resolve()) if Path(name).is_dir() else name for name in (one, other)]
    return resolved[0] == resolved[1]


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest `checkpoint-N` that a kill did not cut short, or None; the others are removed.

    `Trainer` writes `trainer_state.json` last, so a checkpoint that has a readable one is whole.
    """
    numbered: list[tuple[int, Path]] = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            state: dict[str, Any] = json.loads((folder / "trainer_state.json").read_text())
            numbered.append((state["global_step"], folder))
        except (FileNotFoundError, ValueError):  # absent, half written, or not text
            shutil.rmtree(folder)
    return str(max(numbered)[1]) if numbered else None


def checkpoint_to_resume(asked: str | None, output_dir: str | Path) -> str | None:
    """
    Where training goes on: the checkpoint that `--resume_from_checkpoint PATH` names, else the run's own newest.

    Raises:
        `InputError`: There is no whole checkpoint at the path.
    """
    if asked is None or asked.lower() == "true":
        return last_complete_checkpoint(output_dir)
    if not (Path(asked) / "trainer_state.json").is_file():
        told = "expected a checkpoint-N folder of a run, whole (with trainer_state.json)"
        raise InputError(f"resume_from_checkpoint {asked}: {told}; leave it out to go on from the newest of {output_dir}")
    return asked


class FullWeightsResume:
    """
    Mix into a `Trainer`: resuming full-parameter training restores every weight, or fails.

    A checkpoint is logged at, too: what `Trainer` has summed up since the last log is not in it, and the first log of a
    resumed run would be of fewer steps than that of an uninterrupted one.
    """

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None beside the checkpoints: TRL's knows nothing of this training, and the recipes write one into `model/`."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control  # type: ignore[attr-defined]
        # Where the best are saved, only the evaluation says whether this is one.
        control.should_log = control.should_log or control.should_save or control.should_evaluate
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        # The last that each process writes itself; `trainer_state.json`, which says that all is there, comes next.
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import PeftModel

        model = model or self.model  # type: ignore[attr-defined]
        if isinstance(model, PeftModel):
            check_adapter_checkpoint(model, resume_from_checkpoint)
        if isinstance(model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:  # type: ignore[attr-defined]
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            load_full_weights(model, resume_from_checkpoint)

"""
Checkpoints: written atomically and read back to compare; training resumes from the last complete one.

Two defects are worked around. `save_pretrained` gives some families key names that no released checkpoint has
(`StudentFamily.repair_checkpoint`). And `Trainer` resumes full-parameter training of an audio model without loading a weight,
because it loads with `strict=False` and the key names differ (huggingface/transformers#43701).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.models.adapters import check_adapter_weights, same_model
from sightsound.models.family import family_of
from sightsound.models.loading import safetensors_only
from sightsound.stage import replace_folder


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin


def save_adapter(
    model: Any, processor: ProcessorMixin, path: str | Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a LoRA (safetensors) and the processor of its model, atomically. `weights`: as for `save_checkpoint`."""
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
    Write weights (safetensors), config, generation config, processor and chat template, atomically.

    Args:
        weights (`dict`, *optional*): All weights, if the model in this process holds only a part (ZeRO-3, FSDP).

    Raises:
        `RuntimeError`: The written checkpoint does not load with the model's weights.
    """
    import torch

    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(temporary, state_dict=weights)
    processor.save_pretrained(temporary)
    family_of(model.config).repair_checkpoint(temporary)
    reloaded = type(model).from_pretrained(temporary, dtype=model.dtype, use_safetensors=True).state_dict()
    for name, weight in (weights or model.state_dict()).items():
        if not torch.equal(weight.cpu(), reloaded[name]):
            raise RuntimeError(f"{temporary}: {name} is not read back as it was written; the checkpoint is not usable")
    replace_folder(temporary, final)


def load_full_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """
    Load a full-parameter checkpoint into a model in memory: every weight, or an error, where `Trainer` only warns.

    Raises:
        `InputError`: The folder is no checkpoint of this model.
    """
    config = json.loads((Path(checkpoint) / "config.json").read_text()) if Path(checkpoint, "config.json").is_file() else {}
    if config.get("model_type") != model.config.model_type:
        found = config.get("model_type", "no whole model")
        raise InputError(f"{checkpoint} is a checkpoint of {found}, and not of the {model.config.model_type} to be trained")
    with safetensors_only(checkpoint):
        loaded, info = type(model).from_pretrained(
            checkpoint, dtype=model.dtype, use_safetensors=True, output_loading_info=True
        )
    found, expected = ({name: weight.shape for name, weight in m.state_dict().items()} for m in (loaded, model))
    wrong = {*info["missing_keys"], *info["unexpected_keys"]}
    wrong |= {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    if wrong:
        raise InputError(f"{checkpoint} is a checkpoint of another model: {len(wrong)} weights differ (first: {min(wrong)})")
    model.load_state_dict(loaded.state_dict(), strict=True)


def check_adapter_checkpoint(model: Any, checkpoint: str) -> None:
    """
    Check that a checkpoint holds the LoRA of this model; PEFT would only warn of missing weights.

    Raises:
        `InputError`: It holds no LoRA, one with other names or shapes, or one on another base model.
    """
    check_adapter_weights(model, checkpoint)
    base = json.loads((Path(checkpoint) / "adapter_config.json").read_text())["base_model_name_or_path"]
    ours = model.peft_config[model.active_adapters[0]].base_model_name_or_path
    if not same_model(base, ours):
        raise InputError(f"{checkpoint} is a LoRA on {base}, and not on {ours}; give the model that it was trained on")


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest complete `checkpoint-N`, or None; incomplete ones, which a kill has left, are removed.

    `Trainer` writes `trainer_state.json` last, so a checkpoint with a readable one is complete.
    """
    numbered: list[tuple[int, Path]] = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            state: dict[str, Any] = json.loads((folder / "trainer_state.json").read_text())
            numbered.append((state["global_step"], folder))
        except (FileNotFoundError, ValueError):  # absent, half written, or not text
            shutil.rmtree(folder)
    return str(max(numbered)[1]) if numbered else None


def checkpoint_to_resume(named: str | None, output_dir: str | Path) -> str | None:
    """
    The checkpoint to resume from: the one that `--resume_from_checkpoint PATH` names, else the newest of the run.

    Raises:
        `InputError`: There is no complete checkpoint at the path.
    """
    if named is None or named.lower() == "true":
        return last_complete_checkpoint(output_dir)
    if not (Path(named) / "trainer_state.json").is_file():
        expected = "expected a complete checkpoint-N folder of a run (with trainer_state.json)"
        raise InputError(f"resume_from_checkpoint {named}: {expected}; leave it out to resume from the newest of {output_dir}")
    return named


class FullWeightsResume:
    """
    Mix into a `Trainer`: resuming full-parameter training restores every weight, or fails.

    It also logs at every checkpoint: sums since the last log are not saved, so the first log of a resumed run would otherwise
    cover fewer steps than the same log of an uninterrupted one.
    """

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card beside checkpoints: TRL's would not describe this training, and the recipes write one into `model/`."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control  # type: ignore[attr-defined]
        # If only the best checkpoints are saved, it is decided after evaluation whether this is one.
        control.should_log = control.should_log or control.should_save or control.should_evaluate
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        # The last file of each process; `trainer_state.json` is written next and says that all files are there.
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

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import InputError
from .journal import replace_folder


if TYPE_CHECKING:
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
        raise InputError(f"{model} cannot be loaded ({reason}); expected a model folder or a Hub model id") from error


def save_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, path: str | Path) -> None:
    """
    Write weights (safetensors), config, generation config, processor and chat template; put the folder in place whole.

    Raises:
        `RuntimeError`: The written checkpoint does not give back the model's weights.
    """
    import torch

    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    _repair(temporary)
    reloaded = type(model).from_pretrained(temporary, dtype=model.dtype).state_dict()
    for name, weight in model.state_dict().items():
        if not torch.equal(weight.cpu(), reloaded[name]):
            raise RuntimeError(f"{temporary}: {name} does not come back as it was written; the checkpoint is not usable")
    replace_folder(temporary, final)


def load_full_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Load a full-parameter checkpoint into a model in memory; unlike `Trainer`, every weight or an error."""
    loaded = type(model).from_pretrained(checkpoint, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)


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


class FullWeightsResume:
    """
    Mix into a `Trainer`: resuming full-parameter training restores every weight, or fails.

    A checkpoint is logged at, too: what `Trainer` has summed up since the last log is not in it, and the first log of a
    resumed run would be of fewer steps than that of an uninterrupted one.
    """

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control  # type: ignore[attr-defined]
        control.should_log = control.should_log or control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import PeftModel

        model = model or self.model  # type: ignore[attr-defined]
        if isinstance(model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:  # type: ignore[attr-defined]
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            load_full_weights(model, resume_from_checkpoint)

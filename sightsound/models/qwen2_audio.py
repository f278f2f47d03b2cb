"""Qwen2-Audio: everything that is particular to this student family."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def freeze_positions(model: PreTrainedModel) -> None:
    """The audio tower's sinusoids are no weights to train: the class says so, and `from_pretrained` forgets it."""
    model.model.audio_tower.embed_positions.requires_grad_(False)

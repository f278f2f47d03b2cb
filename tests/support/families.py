"""For each student family, a tiny model with random weights and the family's real processor class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.tiny import miniature_builders


# What begins the names of all weights in a released checkpoint, and some whole names.
RELEASED_PREFIXES = {
    "qwen2_audio": ("audio_tower.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."),
    "qwen2_5_omni": ("thinker.audio_tower.", "thinker.visual.", "thinker.model.", "thinker.lm_head."),
}
RELEASED_NAMES = {
    "qwen2_audio": (
        "audio_tower.embed_positions.weight",
        "multi_modal_projector.linear.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.lm_head.weight",
    ),
    "qwen2_5_omni": (
        "thinker.audio_tower.audio_bos_eos_token.weight",
        "thinker.audio_tower.layers.0.self_attn.q_proj.bias",
        "thinker.visual.blocks.0.attn.q.weight",
        "thinker.model.layers.0.mlp.gate_proj.weight",
        "thinker.lm_head.weight",
    ),
}


def _qwen2_audio() -> tuple[Any, Any]:
    return miniature_builders().make_student()


def _qwen2_5_omni() -> tuple[Any, Any]:
    return miniature_builders().make_omni()


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {"qwen2_audio": _qwen2_audio, "qwen2_5_omni": _qwen2_5_omni}


def build_family(name: str, path: Path) -> Path:
    """The checkpoint of a family's tiny model, saved as training saves it."""
    from transformers import GenerationConfig, set_seed

    from sightsound.training.checkpoints import save_checkpoint

    set_seed(0)
    model, processor = BUILDERS[name]()
    ids = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    save_checkpoint(model, processor, path)
    return path

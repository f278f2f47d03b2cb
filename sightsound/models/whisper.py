"""
What the families with Whisper's encoder share: the names of their weights in released checkpoints and in vLLM, and windows.

transformers 5.17 saves them under keys that no released checkpoint has (`language_model.model.model.*`), those of Qwen2-Audio
if the model was built from a config; they are renamed after saving.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightsound.models.family import ClipFeatures, StudentFamily


if TYPE_CHECKING:
    import torch

_DOUBLED_PREFIX = re.compile(r"^language_model\.model\.model\.")


class WhisperFamily(StudentFamily):
    """A family whose released checkpoints hold `audio_tower`, `multi_modal_projector` and a complete `language_model`."""

    def released_key(self, key: str) -> str:
        return _DOUBLED_PREFIX.sub("language_model.model.", key)

    def vllm_name(self, name: str) -> str:
        """vLLM's models have no mapper of names: they expect those of the released checkpoints."""
        if name.startswith("lm_head."):
            return f"language_model.{name}"
        name = name.removeprefix("model.")
        return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language_model.") else name


class WindowFamily(WhisperFamily):
    """
    A family that cuts a clip into windows: the tensors of a clip have a row per window.

    The model takes the windows of all clips one after the other.
    """

    expands_for_sampling = False

    def stack_features(self, clips: Sequence[ClipFeatures]) -> dict[str, torch.Tensor]:
        import torch

        columns = zip(*(clip.tensors for clip in clips), strict=True)
        return {name: torch.cat(column) for name, column in zip(self.feature_names, columns, strict=True)}

    def tower_rows(self, clip: ClipFeatures) -> int:
        return len(clip.tensors[0])

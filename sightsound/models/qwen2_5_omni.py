"""
Qwen2.5-Omni: an audio tower that attends within parts of two seconds, a vision tower, and a Qwen2.5 with mrope.

A clip takes 25 tokens per second, and up to 300 s of it are heard. It takes video too, and both at once.
"""

from __future__ import annotations

from typing import ClassVar

from sightsound.models.family import Licence
from sightsound.models.thinker import ThinkerFamily


class Qwen2_5Omni(ThinkerFamily):
    """See `ThinkerFamily`."""

    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    processors = ("Qwen2_5OmniProcessor",)
    licenses: ClassVar[dict[str, Licence]] = {
        "Qwen/Qwen2.5-Omni-7B": Licence("apache-2.0"),
        "Qwen/Qwen2.5-Omni-3B": Licence(
            "other",
            "qwen-research",
            "https://huggingface.co/Qwen/Qwen2.5-Omni-3B/blob/main/LICENSE",
            "research and evaluation only, no commercial use",
        ),
    }
    architecture = "Qwen2_5OmniThinkerForConditionalGeneration"
    composite = ("qwen2_5_omni", "Qwen2_5OmniModel")

    def num_tokens(self, frames: int) -> int:
        """Two convolutions' strides of 1 and 2, then a mean of two."""
        return ((frames - 1) // 2 + 1) // 2


FAMILY = Qwen2_5Omni()

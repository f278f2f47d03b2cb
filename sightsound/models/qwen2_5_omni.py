"""
Qwen2.5-Omni: an audio tower that attends within parts of two seconds, a vision tower, and a Qwen2.5 with mrope.

A clip takes 25 tokens per second, and up to 300 s of it are heard. It takes video too, and both at once.

vLLM 0.31 serves LoRA adapters on this model, but knows its layers only under their names in a complete checkpoint. PEFT saves
those of the thinker: such an adapter would be accepted and silently ignored. `Qwen2_5OmniWithLoRA` is vLLM's own model with
these names too; vLLM loads it as the plugin `sightsound` where this project is installed.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

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

    def register_in_vllm(self) -> None:
        from vllm import ModelRegistry

        # By name: vLLM imports the model where it needs it.
        ModelRegistry.register_model(self.composite[1], f"{__name__}:Qwen2_5OmniWithLoRA")

    def num_tokens(self, frames: int) -> int:
        """Two convolutions' strides of 1 and 2, then a mean of two."""
        return ((frames - 1) // 2 + 1) // 2


FAMILY = Qwen2_5Omni()


def __getattr__(name: str) -> Any:
    # The class is made when vLLM asks for it, so that this module can be imported without vLLM.
    if name == "Qwen2_5OmniWithLoRA":
        return _vllm_model()
    raise AttributeError(name)


@cache
def _vllm_model() -> type:
    from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration
    from vllm.model_executor.models.utils import WeightsMapper

    names = WeightsMapper(orig_to_new_prefix={"model.": "language_model.model.", "lm_head.": "language_model.lm_head."})

    class Qwen2_5OmniWithLoRA(Qwen2_5OmniThinkerForConditionalGeneration):
        hf_to_vllm_mapper = Qwen2_5OmniThinkerForConditionalGeneration.hf_to_vllm_mapper | names

    return Qwen2_5OmniWithLoRA

r"""
LoRA for vLLM's Qwen2-Audio: vLLM 0.31 serves adapters on many models, and refuses them on this one.

    vllm serve Qwen/Qwen2-Audio-7B-Instruct --enable-lora --max-lora-rank 8 --lora-modules student=sft-tts_agfv/adapter \
        --generation-config vllm

Where the project is installed beside vLLM, this is loaded by vLLM itself, as the plugin `sightsound`. The model is vLLM's own:
it is told that its language model takes adapters, which of its layers are several of transformers' in one, and how PEFT's
names are to be read. Without these names an adapter would be accepted and left out, without a word. The merged `model/` needs
none of this.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar


def register() -> None:
    """Entry point of vLLM's plugins, run in each of its processes; the model is imported when it is needed."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("Qwen2AudioForConditionalGeneration", f"{__name__}:Qwen2AudioWithLoRA")


def __getattr__(name: str) -> Any:
    # vLLM is imported with the model, and not where somebody imports this module without it.
    if name == "Qwen2AudioWithLoRA":
        return _make_model()
    raise AttributeError(name)


@cache
def _make_model() -> type:
    from vllm.model_executor.models.interfaces import SupportsLoRA
    from vllm.model_executor.models.module_mapping import MultiModelKeys
    from vllm.model_executor.models.qwen2_audio import Qwen2AudioForConditionalGeneration
    from vllm.model_executor.models.utils import WeightsMapper

    class Qwen2AudioWithLoRA(Qwen2AudioForConditionalGeneration, SupportsLoRA):
        hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model."})
        packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
            "qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "gate_up_proj": ["gate_proj", "up_proj"],
        }

        def get_mm_mapping(self) -> Any:
            return MultiModelKeys.from_string_field(
                language_model="language_model.", connector="multi_modal_projector.", tower_model="audio_tower."
            )

    return Qwen2AudioWithLoRA

r"""
Qwen2-Audio: Whisper's encoder on windows of 30 s, pooled to 25 tokens per second, before a Qwen language model.

vLLM 0.31 serves LoRA adapters on many models, but refuses them on this one. `Qwen2AudioWithLoRA` is vLLM's own model with what
is missing: that its language model takes adapters, which of its layers hold several of transformers', and how PEFT's names map
to its own (without the mapping an adapter is accepted and silently ignored). vLLM loads it as the plugin `sightsound` where
this project is installed; merged checkpoints (`model/`) do not need it:

    vllm serve Qwen/Qwen2-Audio-7B-Instruct --enable-lora --max-lora-rank 8 --lora-modules student=sft-tts_agfv/adapter \
        --generation-config vllm
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from sightsound.models.family import Licence
from sightsound.models.whisper import WhisperFamily


ARCHITECTURE = "Qwen2AudioForConditionalGeneration"


class Qwen2Audio(WhisperFamily):
    """See `StudentFamily`, whose defaults are those of this family where nothing else is said."""

    model_types = ("qwen2_audio",)
    processors = ("Qwen2AudioProcessor",)
    licenses: ClassVar[dict[str, Licence]] = {"Qwen/Qwen2-Audio-7B-Instruct": Licence("apache-2.0")}
    architecture = ARCHITECTURE
    feature_names = ("input_features", "feature_attention_mask")

    def register_in_vllm(self) -> None:
        from vllm import ModelRegistry

        # By name: vLLM imports the model where it needs it.
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}:Qwen2AudioWithLoRA")


FAMILY = Qwen2Audio()


def __getattr__(name: str) -> Any:
    # The class is made when vLLM asks for it, so that this module can be imported without vLLM.
    if name == "Qwen2AudioWithLoRA":
        return _vllm_model()
    raise AttributeError(name)


@cache
def _vllm_model() -> type:
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

"""
Qwen3-Omni-30B-A3B: an audio tower whose convolutions work on parts of one second, a vision tower, and a Qwen3 with mrope whose
layers are mixtures of experts.

A clip takes 13 tokens per second, and is not cut: the tower attends within eight seconds, whatever the length.

A clip of less than one second has a single, short part. The tower pads it to the longest part of its call and sees the padding:
what it computes of such a clip depends on the other clips, in transformers as in vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sightsound.data.schema import SAMPLING_RATE
from sightsound.models.family import Licence
from sightsound.models.thinker import ThinkerFamily


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin

    from sightsound.data.frames import Frames

PART = 100  # frames; the processor's own constant


class Qwen3Omni(ThinkerFamily):
    """See `ThinkerFamily`."""

    model_types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    processors = ("Qwen3OmniMoeProcessor",)
    licenses: ClassVar[dict[str, Licence]] = {
        "Qwen/Qwen3-Omni-30B-A3B-Instruct": Licence("apache-2.0"),
        "Qwen/Qwen3-Omni-30B-A3B-Thinking": Licence("apache-2.0"),
    }
    architecture = "Qwen3OmniMoeThinkerForConditionalGeneration"
    composite = ("qwen3_omni_moe", "Qwen3OmniMoeForConditionalGeneration")
    not_in_vllm = "it serves the checkpoints, but updated weights of the experts do not reach a running engine"
    # Attention alone: the experts of a layer are two parameters in transformers 5 and not linear layers that PEFT could adapt.
    lora_target_modules = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    lora_exclude_modules = r"(audio_tower|visual)\..*"

    def processor_facts(self, config: PreTrainedConfig, processor: ProcessorMixin) -> dict[str, tuple[int, int]]:
        facts = super().processor_facts(config, processor)
        return {**facts, "frames of a part": (PART, 2 * config.audio_config.n_window)}

    def window_s(self, processor: ProcessorMixin) -> float | None:
        return None

    def encode(
        self,
        processor: ProcessorMixin,
        texts: Sequence[str],
        *,
        audio: Sequence[np.ndarray] = (),
        videos: Sequence[Frames] = (),
        **options: Any,
    ) -> Any:
        """
        Features of each clip as the processor computes them for the clip alone.

        In a batch, the last frame of a clip would see the silence after it; alone, it sees the end of the clip mirrored.
        """
        extractor = processor.feature_extractor
        # A part of a hop is a frame in a batch and none alone; vLLM too fills it with silence.
        whole = [np.pad(waveform, (0, -len(waveform) % extractor.hop_length)) for waveform in audio]
        encoded = super().encode(processor, texts, audio=whole, videos=videos, **options)
        for row, waveform in enumerate(whole):
            alone = extractor(waveform, sampling_rate=SAMPLING_RATE, padding=True, truncation=False, return_tensors="pt")
            (features,) = alone["input_features"]
            encoded["input_features"][row, :, : features.shape[1]] = features
        return encoded

    def num_tokens(self, frames: int) -> int:
        """Three convolutions with a stride of 2 on each part; a whole part has 13 tokens."""
        parts, rest = divmod(frames, PART)
        return 13 * parts + -(-rest // 8)


FAMILY = Qwen3Omni()

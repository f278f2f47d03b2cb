"""
Audio Flamingo 3: Whisper's encoder on windows of 30 s, pooled to 25 tokens per second, before a Qwen2.5 language model.

A clip of up to 600 s is cut into windows. The last one is padded, because the encoder's positions are those of a whole window.

vLLM 0.31 serves LoRA adapters on this model, but does not map the names under which PEFT saves them: an adapter would be
accepted and silently ignored. `AudioFlamingo3WithLoRA` is vLLM's own model with that mapping; vLLM loads it as the plugin
`sightsound` where this project is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from sightsound.models.family import ClipFeatures, Licence
from sightsound.models.whisper import WindowFamily


if TYPE_CHECKING:
    import numpy as np
    from transformers import ProcessorMixin

    from sightsound.data.frames import Frames

ARCHITECTURE = "AudioFlamingo3ForConditionalGeneration"


class AudioFlamingo3(WindowFamily):
    """See `StudentFamily`."""

    model_types = ("audioflamingo3",)
    processors = ("AudioFlamingo3Processor",)
    licenses: ClassVar[dict[str, Licence]] = {
        "nvidia/audio-flamingo-3-hf": Licence(
            "other",
            "nvidia-oneway-noncommercial",
            "https://huggingface.co/nvidia/audio-flamingo-3-hf/blob/main/static/NVIDIA_OneWay_Noncommercial_License.docx",
            "non-commercial research only",
        )
    }
    architecture = ARCHITECTURE
    longest_clip_s = 600.0
    feature_names = ("input_features", "input_features_mask")

    def window_s(self, processor: ProcessorMixin) -> float | None:
        return float(processor.max_audio_len)

    def encode(
        self,
        processor: ProcessorMixin,
        texts: Sequence[str],
        *,
        audio: Sequence[np.ndarray] = (),
        videos: Sequence[Frames] = (),
        **options: Any,
    ) -> Any:
        """The processor pads texts always, and takes as many clips as texts; here each text may be without one."""
        if "return_tensors" in options:
            # Of the texts alone: windows are always padded to their full length.
            options["text_kwargs"] = {name: options.pop(name) for name in ("padding", "padding_side") if name in options}
            return super().encode(processor, texts, audio=audio, videos=videos, **options)
        ids = self.tokenize(processor, texts)
        if not audio:
            return {"input_ids": ids}
        hears = [row for row, text in enumerate(texts) if self.placeholder(processor) in text]
        encoded = super().encode(processor, [texts[row] for row in hears], audio=audio)
        for row, padded, mask in zip(hears, encoded["input_ids"], encoded["attention_mask"], strict=True):
            ids[row] = padded[mask.bool()].tolist()
        return {"input_ids": ids, **{name: encoded[name] for name in self.feature_names}}

    def clip_features(self, processor: ProcessorMixin, waveform: np.ndarray) -> ClipFeatures:
        """The tensors have a row per window."""
        encoded = self.encode(processor, [self.placeholder(processor)], audio=[waveform])
        placeholder = processor.tokenizer.convert_tokens_to_ids(self.placeholder(processor))
        num_tokens = encoded["input_ids"][0].count(placeholder)
        return ClipFeatures(tuple(encoded[name] for name in self.feature_names), num_tokens)

    def register_in_vllm(self) -> None:
        from vllm import ModelRegistry

        # By name: vLLM imports the model where it needs it.
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}:AudioFlamingo3WithLoRA")


FAMILY = AudioFlamingo3()


def __getattr__(name: str) -> Any:
    # The class is made when vLLM asks for it, so that this module can be imported without vLLM.
    if name == "AudioFlamingo3WithLoRA":
        return _vllm_model()
    raise AttributeError(name)


@cache
def _vllm_model() -> type:
    from vllm.model_executor.models.audioflamingo3 import AudioFlamingo3ForConditionalGeneration
    from vllm.model_executor.models.utils import WeightsMapper

    class AudioFlamingo3WithLoRA(AudioFlamingo3ForConditionalGeneration):
        hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.language_model.": "language_model.model."})

    return AudioFlamingo3WithLoRA

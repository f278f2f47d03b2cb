"""
Audio Flamingo 3: Whisper's encoder on windows of 30 s, pooled to 25 tokens per second, before a Qwen2.5 language model.

A clip of up to 600 s is cut into windows. The last one is padded, because the encoder's positions are those of a whole window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sightsound.models.family import ClipFeatures, Licence
from sightsound.models.whisper import WindowFamily


if TYPE_CHECKING:
    import numpy as np
    from transformers import ProcessorMixin

    from sightsound.data.frames import Frames


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
    architecture = "AudioFlamingo3ForConditionalGeneration"
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


FAMILY = AudioFlamingo3()

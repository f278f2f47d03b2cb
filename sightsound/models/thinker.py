"""
What the Omni families share: a model of several parts, of which the *thinker* hears, sees and writes, and is the student.

A released checkpoint also holds a talker, which speaks the thinker's text. transformers loads the thinker alone from it. The
thinker is saved as a part of a complete checkpoint, the only form that vLLM reads: its keys begin with `thinker.`, and
`enable_audio_output` is false.

A prompt with audio has ordinary positions: the three axes of mrope are equal, and the class expands 2-D positions itself. Only
video tells them apart, and GRPO's prompts have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sightsound.models.family import ClipFeatures, StudentFamily


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from sightsound.data.frames import Frames

THINKER = "thinker."


class ThinkerFamily(StudentFamily):
    """
    A family whose student is the thinker of a model of several parts.

    Attributes:
        composite (`tuple[str, str]`): Model type and architecture of a complete checkpoint.
    """

    composite: tuple[str, str]
    longest_clip_s = 300.0
    trained_part = "thinker"
    audio_tower = "audio_tower"
    language_model = "model"
    never_trained = ("visual",)  # a student is trained on sound alone
    lora_target_modules = r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    expands_for_sampling = False

    def model_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        return getattr(config, "thinker_config", config)

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
        found = super().model_class(config)
        return None if found is None else _with_backbone(found)  # type: ignore[arg-type]

    def processor_facts(self, config: PreTrainedConfig, processor: ProcessorMixin) -> dict[str, tuple[int, int]]:
        """Without the window: the tower works on parts of two seconds, whatever the length of a clip."""
        facts = super().processor_facts(config, processor)
        return {name: fact for name, fact in facts.items() if name != "frames of a window"}

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
        The processor pads every clip to its window of 300 s, 15 MB; here to the longest of the batch. And it ignores the frame
        rates of videos, and takes the same one for granted for all of them.
        """
        if audio:
            extractor = processor.feature_extractor
            # Past the end, a frame of the spectrogram sees half a window of silence, as it does in the processor's padding.
            samples = max(len(waveform) for waveform in audio) + extractor.n_fft // 2
            options["audio_kwargs"] = {"max_length": -(-samples // extractor.hop_length) * extractor.hop_length}
        encoded = super().encode(processor, texts, audio=audio, videos=videos, **options)
        if videos:
            import torch

            frames = processor.video_processor.temporal_patch_size  # that share their tokens
            encoded["video_second_per_grid"] = torch.tensor([frames / video.metadata()["fps"] for video in videos])
        return encoded

    def clip_features(self, processor: ProcessorMixin, waveform: np.ndarray) -> ClipFeatures:
        """As of every family, without the padding."""
        clip = super().clip_features(processor, waveform)
        features, mask = clip.tensors
        frames = int(mask.sum())
        return ClipFeatures((features[:, :frames].contiguous(), mask[:frames]), clip.num_tokens)

    def stack_features(self, clips: Sequence[ClipFeatures]) -> dict[str, torch.Tensor]:
        """Padded to the longest; the model packs what the mask shows before the tower."""
        from torch.nn.utils.rnn import pad_sequence

        features, masks = zip(*(clip.tensors for clip in clips), strict=True)
        padded = pad_sequence([feature.T for feature in features], batch_first=True).transpose(1, 2)
        return dict(zip(self.feature_names, (padded, pad_sequence(list(masks), batch_first=True)), strict=True))

    def count_rows(self, inputs: dict[str, torch.Tensor]) -> int:
        return len(inputs["feature_lens"])

    def select_clips(
        self, inputs: dict[str, torch.Tensor], clips: Sequence[ClipFeatures], chosen: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """The tower takes all clips packed along the frames, and the number of frames of each."""
        import torch

        packed = inputs["input_features"].split([clip.tensors[0].shape[1] for clip in clips], dim=1)
        lengths = {name: inputs[name][list(chosen)] for name in inputs if name in ("feature_lens", "aftercnn_lens")}
        return {**inputs, **lengths, "input_features": torch.cat([packed[clip] for clip in chosen], dim=1)}

    def repeat_clips(self, output: torch.Tensor, clips: Sequence[ClipFeatures], order: Sequence[int]) -> torch.Tensor:
        import torch

        packed = output.split([self.num_tokens(clip.tensors[0].shape[1]) for clip in clips])
        return torch.cat([packed[clip] for clip in order])

    def num_tokens(self, frames: int) -> int:
        """Audio tokens of a clip with so many frames of the spectrogram."""
        raise NotImplementedError

    def released_key(self, key: str) -> str:
        return key if key.startswith(THINKER) else THINKER + key

    def released_config(self, config: dict[str, Any]) -> dict[str, Any]:
        model_type, architecture = self.composite
        # Left out, vLLM would take the text config's default, which is tied.
        config["text_config"]["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
        return {
            "architectures": [architecture],
            "dtype": config.get("dtype"),
            "enable_audio_output": False,
            "model_type": model_type,
            "thinker_config": config,
            "transformers_version": config.get("transformers_version"),
        }

    def vllm_name(self, name: str) -> str:
        return THINKER + name


class Backbone:
    """
    What a thinker computes before its output layer. transformers has no module for it: `model.model` does not hear.

    TRL's trainers call it as `model.base_model`.

    Raises:
        `ValueError`: By a call whose prompts do not have one audio token per row of audio features.
    """

    _tp_plan = _pp_plan = None  # read by transformers from whatever `base_model` is

    def __init__(self, thinker: Any):
        self._thinker = thinker

    def __call__(
        self,
        input_ids: torch.Tensor,
        input_features: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: None = None,  # PEFT always passes it
        **kwargs: Any,
    ) -> Any:
        thinker = self._thinker
        embedded = thinker.get_input_embeddings()(input_ids)
        if input_features is not None:
            heard = thinker.get_audio_features(input_features, feature_attention_mask, return_dict=True).last_hidden_state
            is_audio = input_ids == thinker.config.audio_token_id
            if (expected := int(is_audio.sum())) != len(heard):
                raise ValueError(
                    f"{expected} audio tokens in the prompts, but {len(heard)} rows of audio features: "
                    "write as many placeholders as `clip_features` counts"
                )
            embedded = embedded.masked_scatter(is_audio.unsqueeze(-1), heard.to(embedded.device, embedded.dtype))
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return thinker.model(inputs_embeds=embedded, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


@cache
def _with_backbone(thinker: Any) -> Any:
    """The class of a thinker, under its name, with a `Backbone` as `base_model` and no warning about the talker's weights."""

    def base_model(self: Any) -> Backbone:
        return Backbone(self)

    added = {"base_model": property(base_model), "_keys_to_ignore_on_load_unexpected": [r"^(talker|token2wav|code2wav)\."]}
    added["__module__"] = thinker.__module__  # transformers converts the keys of its own classes alone
    return type(thinker.__name__, (thinker,), added)

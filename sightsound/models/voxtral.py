"""
Voxtral: Whisper's encoder on windows of 30 s, four of its frames to a token, before a Llama-like language model of Mistral.

A clip is padded to whole windows, and each takes 375 tokens (12.5 per second), so a clip of 2 s costs as much as one of 30 s.
Up to 40 minutes are taken in.

Prompts are written by Mistral's own package `mistral-common`, which makes tokens of messages and never text: in a question,
`[INST]` is six letters and never the control token. Here a prompt is text in between. So that both stay apart, `render` puts
`CONTROL` before each control token, and `tokenize` makes one only of what follows `CONTROL`. Everything else, completions too,
is plain text.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sightsound.data.schema import SAMPLING_RATE
from sightsound.models.family import ClipFeatures, Licence
from sightsound.models.whisper import WindowFamily


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin

    from sightsound.data.frames import Frames

# Marks a control token in a prompt. Unicode reserves this code point for use within a program: no text holds it.
CONTROL = "\ufdd0"
# https://huggingface.co/mistralai/Voxtral-Mini-3B-2507: "up to 30 minutes for transcription, or 40 minutes for understanding"
LONGEST_CLIP_S = 40 * 60.0
_CONTROL_TOKEN = re.compile(CONTROL + r"(\[.*?\]|<.*?>)")


class Voxtral(WindowFamily):
    """See `StudentFamily`."""

    model_types = ("voxtral",)
    processors = ("VoxtralProcessor",)
    licenses: ClassVar[dict[str, Licence]] = {
        "mistralai/Voxtral-Mini-3B-2507": Licence("apache-2.0"),
        "mistralai/Voxtral-Small-24B-2507": Licence("apache-2.0"),
    }
    architecture = "VoxtralForConditionalGeneration"
    longest_clip_s = LONGEST_CLIP_S
    feature_names = ("input_features",)
    # With our files its model asks for `--tokenizer-mode mistral`, and then for a size that only `params.json` holds.
    not_in_vllm = "vLLM reads Voxtral only in Mistral's format (params.json, consolidated.safetensors), not as it is saved here"
    no_adapters_in_vllm = "vLLM's Voxtral does not know the names of transformers, under which an adapter is saved"

    def processor_problem(self, processor: ProcessorMixin) -> str | None:
        """Without the package, transformers makes an ordinary tokenizer of Mistral's file, which has no chat template."""
        if type(processor.tokenizer).__name__ == "MistralCommonBackend":
            return None
        return "needs mistral-common, which writes its prompts: install this package with the extra `voxtral`"

    def processor_facts(self, config: PreTrainedConfig, processor: ProcessorMixin) -> dict[str, tuple[int, int]]:
        # What the tokenizer's file says, because the processor takes the audio token to be 24 whatever it says.
        token: Any = getattr(_instruct(processor).audio_encoder, "audio_token", None)
        return {**super().processor_facts(config, processor), "id of the audio token": (token, config.audio_token_id)}

    def window_s(self, processor: ProcessorMixin) -> float | None:
        return LONGEST_CLIP_S

    def placeholder(self, processor: ProcessorMixin) -> str:
        return CONTROL + processor.audio_token

    def end_of_turn(self, processor: ProcessorMixin) -> str:
        return CONTROL + processor.tokenizer.eos_token

    def render(self, processor: ProcessorMixin, messages: Sequence[dict], *, for_answer: bool) -> str:
        """The last message is the user's: an answer follows it without a header, so that `for_answer` changes nothing."""
        with_clips = [{**message, "content": _with_silence(message["content"])} for message in messages]
        ids = processor.tokenizer.apply_chat_template(with_clips, tokenize=True, return_dict=False)
        tokenizer, parts = _instruct(processor).tokenizer, []
        for is_control, run in groupby(ids, tokenizer.is_special):
            if is_control:
                parts += [CONTROL + tokenizer.id_to_piece(token) for token in run]
            else:
                parts.append(tokenizer.decode(list(run)).replace(CONTROL, ""))
        placeholder = self.placeholder(processor)
        return re.sub(f"(?:{re.escape(placeholder)})+", placeholder, "".join(parts))

    def tokenize(self, processor: ProcessorMixin, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = _instruct(processor).tokenizer
        encoded = []
        for text in texts:
            ids: list[int] = []
            # Text and control tokens by turns: split keeps what the group has matched.
            for number, part in enumerate(_CONTROL_TOKEN.split(text)):
                ids += [tokenizer.get_special_token(part)] if number % 2 else tokenizer.encode(part, bos=False, eos=False)
            encoded.append(ids)
        return encoded

    def encode(
        self,
        processor: ProcessorMixin,
        texts: Sequence[str],
        *,
        audio: Sequence[np.ndarray] = (),
        videos: Sequence[Frames] = (),
        **options: Any,
    ) -> Any:
        """The processor itself takes no audio beside a text."""
        from transformers import BatchEncoding

        placeholder = self.placeholder(processor)
        clips = [self.clip_features(processor, waveform) for waveform in audio]
        left = iter(clips)
        expanded = [t.replace(placeholder, placeholder * next(left).num_tokens) if placeholder in t else t for t in texts]
        ids = {"input_ids": self.tokenize(processor, expanded)}
        encoded = processor.tokenizer.pad(ids, **options) if options else BatchEncoding(ids)
        if clips:
            encoded.update(self.stack_features(clips))
        return encoded

    def clip_features(self, processor: ProcessorMixin, waveform: np.ndarray) -> ClipFeatures:
        """One tensor, `(windows, num_mel_bins, frames of a window)`."""
        extractor = processor.feature_extractor
        features = extractor(
            waveform,
            sampling_rate=SAMPLING_RATE,
            truncation=False,
            padding=True,
            pad_to_multiple_of=extractor.n_samples,
            return_tensors="pt",
        )["input_features"]
        windows = features[0].unflatten(1, (-1, extractor.nb_max_frames)).transpose(0, 1).contiguous()
        config = _instruct(processor).audio_encoder.audio_config
        return ClipFeatures((windows,), config.num_audio_tokens(len(windows) * extractor.n_samples))


FAMILY = Voxtral()


def _instruct(processor: ProcessorMixin) -> Any:
    """What mistral-common writes the prompts with."""
    return processor.tokenizer.tokenizer.instruct_tokenizer


def _with_silence(content: str | list[dict]) -> str | list[dict]:
    """The content of a message with a clip of one window for each of its audio parts: mistral-common writes none without."""
    if isinstance(content, str):
        return content
    clip = {"type": "input_audio", "input_audio": {"data": _silence(), "format": "wav"}}
    return [clip if part["type"] == "audio" else part for part in content]


@cache
def _silence() -> str:
    import soundfile

    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(SAMPLING_RATE // 100, dtype=np.float32), SAMPLING_RATE, format="WAV")
    return base64.b64encode(wav.getvalue()).decode()

"""Rows to a padded batch: clips become features, and only the completion is a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sightsound.data.audio import decode_audio
from sightsound.data.schema import SAMPLING_RATE
from sightsound.method.prompts import user_message, with_audio
from sightsound.models.family import family_of_processor


if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin

IGNORED = -100  # the label that PyTorch's cross entropy skips


class CompletionCollator:
    """
    Collate rows for supervised training of an audio (or vision) language model.

    A row holds `prompt` (messages with string contents), `completion` (text) and one of `audio` (an undecoded
    `datasets.Audio` cell), `video` (`Frames`) or neither. Clips are cut to the model's window; callers record in their ledger
    which ones.

    Args:
        processor (`ProcessorMixin`): Of the model that is trained.
        max_length (`int`, *optional*): In tokens. Longer rows raise `ValueError`; they are never cut, because a completion
            without its end teaches the model not to end.

    Returns of a call:
        `dict`: `input_ids`, `attention_mask`, `labels`, each `(batch, length)` and right-padded, and the processor's
        features, one entry per clip.
    """

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None):
        self.processor = processor
        self.max_length = max_length
        self._family = family_of_processor(processor)
        self.window_s = self._family.window_s(processor)
        self._end = self._family.end_of_turn(processor)
        self._audio_tokens: dict[int, int] = {}

    def _prompt(self, row: Mapping[str, Any]) -> str:
        messages = row["prompt"]
        if row.get("audio") is not None:
            messages = with_audio(messages)
        elif row.get("video") is not None:
            messages = user_message(messages[-1]["content"], "video")
        else:
            messages = user_message(messages[-1]["content"])
        return self._family.render(self.processor, messages, for_answer=True)

    def num_tokens(self, row: Mapping[str, Any], duration_s: float | None = None) -> int:
        """
        Length of one row in a batch; its clip is not read.

        Args:
            row: As for a call.
            duration_s (`float`, *optional*): Of the row's clip, before it is cut.
        """
        text = self._prompt(row) + row["completion"] + self._end
        (ids,) = self._family.tokenize(self.processor, [text])
        num_tokens = len(ids)
        if duration_s is None:
            return num_tokens
        taken_s = duration_s if self.window_s is None else min(duration_s, self.window_s)
        return num_tokens - 1 + self._num_audio_tokens(round(taken_s * SAMPLING_RATE))

    def _num_audio_tokens(self, num_samples: int) -> int:
        """Tokens that replace a clip's placeholder; kept, because most clips of a dataset have the same length."""
        if num_samples not in self._audio_tokens:
            silence = np.zeros(num_samples, dtype=np.float32)
            self._audio_tokens[num_samples] = self._family.clip_features(self.processor, silence).num_tokens
        return self._audio_tokens[num_samples]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        audio = [row["audio"] for row in rows if row.get("audio") is not None]
        prompts = self._family.encode(
            self.processor,
            [self._prompt(row) for row in rows],
            audio=[decode_audio(cell, self.window_s).waveform for cell in audio],
            videos=[row["video"] for row in rows if row.get("video") is not None],
        )
        texts = [row["completion"] + self._end for row in rows]
        completions = self._family.tokenize(self.processor, texts)
        ids, labels = [], []
        for prompt, completion in zip(prompts["input_ids"], completions, strict=True):
            if self.max_length is not None and len(prompt) + len(completion) > self.max_length:
                raise ValueError(f"a row of {len(prompt) + len(completion)} tokens exceeds max_length={self.max_length}")
            ids.append(torch.tensor([*prompt, *completion]))
            labels.append(torch.tensor([IGNORED] * len(prompt) + completion))
        pad = self.processor.tokenizer.pad_token_id
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }
        length = batch["input_ids"].shape[1]
        for name, value in prompts.items():
            if name == "mm_token_type_ids":  # per token, like the ids; a completion is text (0)
                batch[name] = torch.tensor([[*types, *[0] * (length - len(types))] for types in value])
            elif name not in ("input_ids", "attention_mask"):
                batch[name] = torch.as_tensor(value)
        return batch

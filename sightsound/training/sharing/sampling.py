"""
Sampling G completions of each prompt with one copy of the prompt's keys and values.

`model.generate` decodes one row per completion. Within `shared_sampling` each of its steps runs as one row per prompt: the
newest tokens of the prompt's completions side by side, under a mask with which each attends to the prompt and its own
completion. A prompt is computed once, its keys and values are stored and read once (as in Hydragen, arXiv 2402.05099), and
completions that have ended are removed from the row. It works with any attention that takes a mask. The draws are those of
separate rows.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutput

from sightsound.models.family import ClipFeatures, family_of
from sightsound.training.sharing.packing import additive_mask, group_rows


ROOM = 256  # tokens by which a full cache grows


class PreallocatedLayer(DynamicLayer):
    """Keys and values of a layer, with free space at the end: `DynamicLayer` copies all of them for every token."""

    def __init__(self) -> None:
        super().__init__()
        self._length = 0

    def get_seq_length(self) -> int:
        return self._length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, end = self._length, self._length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = (self._longer(old, end + ROOM) for old in (self.keys, self.values))
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        self._length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _longer(self, old: torch.Tensor, length: int) -> torch.Tensor:
        new = old.new_empty(*old.shape[:2], length, old.shape[3])
        new[:, :, : self._length] = old[:, :, : self._length]
        return new


class GroupDecoder:
    """
    Replaces a model's forward while `generate` runs: takes one row per completion, runs the model on one row per prompt.

    Args:
        clips (`Sequence[ClipFeatures]`): Per row: rows share a prompt only if they share the clip.
        end_ids (`Collection[int]`): Tokens that end a completion.
    """

    def __init__(self, model: PreTrainedModel, clips: Sequence[ClipFeatures], end_ids: Collection[int]):
        self.model = model
        self.clips = clips
        self.end_ids = torch.tensor(sorted(end_ids))
        self.family = family_of(model.config)
        self.cache: Cache | None = None

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> CausalLMOutput:
        tokens = input_ids[:, -1]
        if self.cache is None:
            self._prefill(input_ids, inputs["attention_mask"])
        else:
            self._drop_ended(tokens)
        return CausalLMOutput(logits=self._decode(tokens)[:, None])

    def _prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Compute each prompt but for its last token, from which every completion starts."""
        device = input_ids.device
        groups = group_rows(list(zip(self.clips, map(tuple, input_ids.tolist()), strict=True)))
        first = torch.tensor([rows[0] for rows in groups], device=device)
        shown = attention_mask[first, :-1]
        self.cache = Cache(layers=[PreallocatedLayer() for _ in range(self.model.config.get_text_config().num_hidden_layers)])
        self.model.base_model(
            input_ids=input_ids[first, :-1],
            attention_mask=shown,
            position_ids=(shown.cumsum(dim=1) - 1).clamp(min=0),
            **self.family.stack_features([self.clips[rows[0]] for rows in groups]),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.end_ids = self.end_ids.to(device)
        # For each place in the packed rows, the row of `generate`; -1 for an empty place.
        width = max(len(rows) for rows in groups)
        self.places = torch.tensor([rows + [-1] * (width - len(rows)) for rows in groups], device=device)
        # The owner of each cached token: 0 the prompt, i + 1 the i-th row of `generate`, -1 padding.
        self.owners = shown.long() - 1
        self.positions = attention_mask.sum(dim=1) - 1

    def _drop_ended(self, tokens: torch.Tensor) -> None:
        ended = torch.isin(tokens, self.end_ids)[self.places] & (self.places >= 0)
        if not ended.any():
            return
        places = self.places.masked_fill(ended, -1)
        width = int((places >= 0).sum(dim=1).max())
        if width:  # with `synced_gpus`, `generate` continues after all rows have ended
            order = (places < 0).long().argsort(dim=1, stable=True)
            self.places = places.gather(1, order)[:, :width]

    def _decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, `(rows, vocabulary)`; zeros for rows that have ended."""
        present = self.places >= 0
        rows = self.places.clamp(min=0)
        of_query = self.places + 1  # 0, the prompt, for an empty place
        self.owners = torch.cat([self.owners, of_query.masked_fill(~present, -1)], dim=1)
        of_key = self.owners[:, None]
        sees = (of_key == 0) | (of_key == of_query[:, :, None])
        hidden = self.model.base_model(
            input_ids=tokens[rows],
            attention_mask=additive_mask(sees[:, None], self.model),
            position_ids=self.positions[rows],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.positions = self.positions + 1
        scores = self.model.get_output_embeddings()(hidden[present])
        return scores.new_zeros(len(tokens), scores.shape[-1]).index_copy_(0, self.places[present], scores)


@contextmanager
def shared_sampling(
    model: PreTrainedModel | PeftModel, clips: Sequence[ClipFeatures], end_ids: Collection[int]
) -> Iterator[None]:
    """
    Within the block, `model.generate` computes each distinct prompt once for all rows that have it.

    Args:
        clips, end_ids: See `GroupDecoder`.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    forward, decoder = base.forward, GroupDecoder(base, clips, end_ids)
    own = vars(base).get("forward")  # set on the instance by TRL, or absent

    @functools.wraps(forward)  # `generate` reads the signature
    def grouped_forward(**inputs: Any) -> CausalLMOutput:
        return decoder(**inputs)

    base.forward = grouped_forward
    try:
        yield
    finally:
        if own is None:
            del base.forward
        else:
            base.forward = own

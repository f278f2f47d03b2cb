"""
One prompt for all its completions: GRPO scores and samples G of them about the same clip and question.

Scoring packs a group into one row, `prompt, completion 1, ..., completion G`, under a mask that lets every completion see the
prompt and itself and no other (Hydragen, arXiv 2402.05099, shares the prefix's attention in the same way; here the linear
layers and the audio tower see it once, too). The last token of the prompt opens each completion, because its output
predicts a completion's first token. Sampling computes each prompt once and gives its keys and values to every completion.

Both are exact: log-probabilities, gradients and draws are those of separate rows, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from trl.trainer.utils import split_tensor_dict


# Attention implementations of transformers that take an arbitrary mask.
MASKABLE = ("sdpa", "eager")


def takes_any_mask(model: PreTrainedModel) -> bool:
    """Whether the language model's attention can let completions of a row not see each other."""
    return model.config.get_text_config()._attn_implementation in MASKABLE


def group_rows(keys: Sequence[Hashable]) -> list[list[int]]:
    """Positions of equal keys, in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return list(groups.values())


@dataclass
class PackedBatch:
    """
    Rows of a batch, packed by prompt.

    Args:
        inputs (`dict`): `input_ids` and `position_ids` `(groups, length)`, `attention_mask` `(groups, 1, length, length)` bool
            and `shift_labels` `(groups, length)`: the token that each position predicts, -100 where none is scored.
        first (`list[int]`): A row of each group: its clip is the group's.
        group, position (`torch.Tensor`): `(rows, completion length)`: where each completion token is predicted.
    """

    inputs: dict[str, torch.Tensor]
    first: list[int]
    group: torch.Tensor
    position: torch.Tensor

    def unpack(self, scores: torch.Tensor) -> torch.Tensor:
        """`(groups, length)` -> `(rows, completion length)`; what stands at padding means nothing."""
        return scores[self.group, self.position]


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int, clips: Sequence[Hashable]
) -> PackedBatch:
    """
    Pack rows of a left-padded prompt and a right-padded completion.

    Args:
        input_ids, attention_mask (`torch.Tensor`): `(rows, prompt length + completion_length)`.
        completion_length (`int`): Columns of completions.
        clips (`Sequence[Hashable]`): Per row: rows share a prompt only if they share the clip.
    """
    device, split = input_ids.device, input_ids.shape[1] - completion_length
    ids, shown = input_ids.cpu(), attention_mask.cpu().bool()
    prompts = [tuple(row[:split][mask[:split]].tolist()) for row, mask in zip(ids, shown, strict=True)]
    written = shown[:, split:].sum(dim=1).tolist()
    groups = group_rows(list(zip(clips, prompts, strict=True)))
    # Each completion takes as many positions as it has tokens: they are predicted by the token before.
    length = max(len(prompts[rows[0]]) - 1 + sum(written[row] for row in rows) for rows in groups)
    tokens = torch.zeros(len(groups), length, dtype=torch.long)
    positions, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    segment = torch.full_like(tokens, -1)  # 0 is the prompt, -1 padding
    group = torch.zeros(len(ids), completion_length, dtype=torch.long)
    position = torch.zeros_like(group)
    for packed, rows in enumerate(groups):
        prompt = torch.tensor(prompts[rows[0]])
        end = len(prompt) - 1
        tokens[packed, :end], segment[packed, :end] = prompt[:-1], 0
        positions[packed, :end] = torch.arange(end)
        for number, row in enumerate(rows, 1):
            count = written[row]
            completion, at = ids[row, split : split + count], slice(end, end + count)
            tokens[packed, at] = torch.cat([prompt[-1:], completion])[:count]
            positions[packed, at] = torch.arange(len(prompt) - 1, len(prompt) - 1 + count)
            labels[packed, at], segment[packed, at] = completion, number
            group[row] = packed
            position[row, :count] = torch.arange(end, end + count)
            end += count
    segment = segment.to(device)
    asks, answers = segment[:, :, None], segment[:, None, :]
    order = torch.arange(length, device=device)
    sees = (order[:, None] >= order) & ((answers == 0) | (answers == asks))
    sees |= order[:, None] == order  # padding has to see something
    inputs = {"input_ids": tokens, "position_ids": positions, "shift_labels": labels}
    inputs = {name: value.to(device) for name, value in inputs.items()} | {"attention_mask": sees[:, None]}
    return PackedBatch(inputs, [rows[0] for rows in groups], group.to(device), position.to(device))


Batch = dict[str, Any]  # of TRL: rows as tensors and lists, and scalars


def regroup(batches: Sequence[Batch]) -> list[Batch]:
    """
    The rows of micro-batches, dealt out again so that those of a prompt follow each other: groups in a random order.

    TRL shuffles single rows, and a micro-batch of 8 rows of 8 prompts shares nothing.
    """
    joined = {name: _join([batch[name] for batch in batches]) for name in batches[0]}
    keys = [(id(mel), tuple(ids)) for (mel, _), ids in zip(joined["audio"], joined["prompt_ids"].tolist(), strict=True)]
    groups = group_rows(keys)
    order = [row for group in torch.randperm(len(groups)).tolist() for row in groups[group]]
    return split_tensor_dict({name: _reorder(value, order) for name, value in joined.items()}, len(batches))


def _join(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [row for value in values for row in value]
    return torch.cat(values) if isinstance(values[0], torch.Tensor) and values[0].ndim else values[0]


def _reorder(value: Any, order: list[int]) -> Any:
    if isinstance(value, list):
        return [value[row] for row in order]
    return value[order] if isinstance(value, torch.Tensor) and value.ndim else value


@contextmanager
def shared_prefill(model: PreTrainedModel, clips: Sequence[Hashable]) -> Iterator[None]:
    """
    Within it, `model.generate` computes each distinct prompt once.

    Args:
        clips (`Sequence[Hashable]`): Per row of the batch that will be generated for.
    """
    generate: Callable[..., Any] = model.generate

    def generate_sharing(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        input_features: torch.Tensor,
        feature_attention_mask: torch.Tensor,
        **options: Any,
    ) -> Any:
        keys = zip(clips, map(tuple, input_ids.tolist()), strict=True)
        groups = group_rows(list(keys))
        owner = torch.empty(len(input_ids), dtype=torch.long, device=input_ids.device)
        for number, rows in enumerate(groups):
            owner[rows] = number
        first = torch.tensor([rows[0] for rows in groups], device=input_ids.device)
        mask = attention_mask[first, :-1]
        cache = DynamicCache(config=model.config.get_text_config())
        model.model(
            input_ids=input_ids[first, :-1],
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            input_features=input_features[first],
            feature_attention_mask=feature_attention_mask[first],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(owner)
        return generate(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, **options)

    model.generate = generate_sharing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.generate

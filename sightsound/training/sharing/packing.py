"""
Score the G completions of a prompt with one copy of the prompt. (`sharing.sampling` samples them with one copy.)

A group is packed into one row, `prompt, completion 1, ..., completion G`, under a mask with which every completion attends to
the prompt and itself, not to the others. The last token of the prompt is repeated before each completion, because its output
predicts a completion's first token. This is exact: log-probabilities and gradients are those of separate rows, up to rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import split_tensor_dict

from sightsound.training.sharing.attention import PACKED, Packing


# Attention implementations of transformers that accept any mask. The flash kernels accept only causal masks.
MASKABLE = ("sdpa", "eager", PACKED)


def supports_custom_masks(model: PreTrainedModel) -> bool:
    """Whether the language model's attention can hide completions of a row from each other."""
    config = model.config.get_text_config()
    return config._attn_implementation in MASKABLE and "sliding_attention" not in (getattr(config, "layer_types", None) or ())


def additive_mask(sees: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """
    0 where `sees` is true, a large negative number elsewhere, in the type that attention computes in.

    Eager attention takes no boolean mask, and sdpa would convert one to this form in each layer.
    """
    device = sees.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)


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
        inputs (`dict`): `input_ids` and `position_ids` `(groups, length)`, what attention needs, and `shift_labels`
            `(groups, length)`: the token that each position predicts, -100 where none is scored.
        first (`list[int]`): A row of each group: its clip is the group's.
        group, position (`torch.Tensor`): `(rows, completion length)`: where each completion token is predicted.
    """

    inputs: dict[str, Any]
    first: list[int]
    group: torch.Tensor
    position: torch.Tensor

    def unpack(self, scores: torch.Tensor) -> torch.Tensor:
        """`(groups, length)` -> `(rows, completion length)`; values at padding are arbitrary."""
        return scores[self.group, self.position]


def pack(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    clips: Sequence[Hashable],
) -> PackedBatch:
    """
    Pack rows of a left-padded prompt and a right-padded completion.

    Args:
        model (`PreTrainedModel`): The model that will run; call this under the same autocast.
        input_ids, attention_mask (`torch.Tensor`): `(rows, prompt length + completion_length)`.
        completion_length (`int`): Number of columns that hold completions.
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
    inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": positions, "shift_labels": labels}
    if model.config.get_text_config()._attn_implementation == PACKED:
        ends = torch.tensor([len(prompts[rows[0]]) - 1 for rows in groups])
        packing = _packing(model, group, position, torch.tensor(written), ends, length)
        inputs["packing"] = Packing(packing[0], *(part.to(device) for part in packing[1:]))
        # Without a mask the model would make one of `(groups, length, length)`, which `packed_attention` does not read. A model
        # with kinds of layers takes one per kind; another passes on what has four dimensions.
        has_kinds = getattr(model.config.get_text_config(), "layer_types", None)
        inputs["attention_mask"] = {"full_attention": None} if has_kinds else torch.zeros(1, 1, 1, 1)
    else:
        of_query, of_key = segment[:, :, None], segment[:, None, :]
        order = torch.arange(length)
        sees = (order[:, None] >= order) & ((of_key == 0) | (of_key == of_query))
        inputs["attention_mask"] = additive_mask(sees[:, None], model)
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    return PackedBatch(inputs, [rows[0] for rows in groups], group.to(device), position.to(device))


def _packing(
    model: PreTrainedModel,
    group: torch.Tensor,
    position: torch.Tensor,
    written: torch.Tensor,
    ends: torch.Tensor,
    length: int,
) -> Packing:
    """
    The index tensors of `packed_attention`.

    Args:
        group, position: Of `PackedBatch`.
        written (`torch.Tensor`): `(rows,)`, tokens of each completion.
        ends (`torch.Tensor`): `(groups,)`, tokens of each prompt that its completions share.
        length (`int`): Of the packed rows.
    """
    shared, tokens = int(ends.max()), torch.arange(group.shape[1])
    sees_prompt = torch.arange(shared) < ends[group[:, :1], None]
    sees_itself = (tokens[:, None] >= tokens).expand(len(group), -1, -1)
    sees = torch.cat([sees_prompt.expand(-1, len(tokens), -1), sees_itself], dim=2)
    place = group * length + position
    origin = torch.arange(len(ends))[:, None] * shared + torch.arange(length).clamp(max=shared - 1)
    origin = origin.flatten()
    is_written = tokens < written[:, None]
    results = len(ends) * shared + torch.arange(place.numel()).view_as(place)
    origin[place[is_written]] = results[is_written]
    return Packing(shared, group[:, 0], place, additive_mask(sees[:, None], model), origin)


Batch = dict[str, Any]  # of TRL: tensors and lists with one entry per row, and scalars


def regroup(batches: Sequence[Batch]) -> list[Batch]:
    """
    Redistribute the rows of micro-batches so that those of a prompt follow each other, with the groups in a random order.

    TRL shuffles single rows, and in a micro-batch of 8 rows of 8 prompts there is nothing to share.
    """
    joined = {name: _join([batch[name] for batch in batches]) for name in batches[0]}
    keys = [(clip, tuple(ids)) for clip, ids in zip(joined["audio"], joined["prompt_ids"].tolist(), strict=True)]
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

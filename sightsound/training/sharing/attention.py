"""
Attention over packed rows (see `packing`): each prompt over itself, then each completion over its prompt and itself.

With a mask over the whole packed row, a kernel would compute attention between completions and then discard it: most of the
work, if completions are long. Here the kernel gets the rows as they would be without packing. The function is registered with
transformers under `PACKED`; where nothing is packed, it does what `sdpa` does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


PACKED = "sdpa_packed"


class Packing(NamedTuple):
    """
    Where the tokens of packed rows `(groups, length)` belong.

    Args:
        prompt_length (`int`): Tokens of the longest prompt that every completion of its group sees.
        group (`torch.Tensor`): `(completions,)`.
        place (`torch.Tensor`): `(completions, tokens)`, position of each completion token among all `groups * length` tokens;
            values after the end of a completion are ignored.
        mask (`torch.Tensor`): `(completions, 1, tokens, prompt_length + tokens)`, additive.
        origin (`torch.Tensor`): `(groups * length,)`: the position of each token's result, among `groups * prompt_length`
            results of prompts followed by those of completions.
    """

    prompt_length: int
    group: torch.Tensor
    place: torch.Tensor
    mask: torch.Tensor
    origin: torch.Tensor


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: `(batch, heads, length, size)` in, `(batch, length, heads, size)` out."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    shared = packing.prompt_length

    def of_completions(states: torch.Tensor) -> torch.Tensor:
        tokens = states.transpose(1, 2).flatten(0, 1).index_select(0, packing.place.flatten())
        return tokens.unflatten(0, packing.place.shape).transpose(1, 2)

    def with_prompt(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states[:, :, :shared].index_select(0, packing.group), of_completions(states)], dim=2)

    prompts, _ = sdpa_attention_forward(module, query[:, :, :shared], key[:, :, :shared], value[:, :, :shared], None, **options)
    completions, _ = sdpa_attention_forward(
        module, of_completions(query), with_prompt(key), with_prompt(value), packing.mask, **options
    )
    results = torch.cat([prompts.flatten(0, 1), completions.flatten(0, 1)])
    return results.index_select(0, packing.origin).unflatten(0, (query.shape[0], query.shape[2])), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Replace `sdpa` by `packed_attention` in the language model."""
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa":
        config._attn_implementation = PACKED

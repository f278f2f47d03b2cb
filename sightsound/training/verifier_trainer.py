"""
The verifier's `Trainer`, whose loss makes the evidence of a clip separate accepted from rejected traces.

It is not in `verifier.py` because it imports transformers' `Trainer`, which takes seconds, and `verdicts.py --help` imports
`verifier.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import Trainer

from sightsound.training.verifier import log_likelihoods


class VerifierTrainer(Trainer):
    """
    Cross entropy of the verdicts given the evidence, plus a language modelling loss.

    The second term is over accepted traces with their audio, and all traces without audio. It is needed because otherwise both
    likelihoods may fall as long as their difference is right, and with few examples they do. Batches are `PairCollator`'s.

    Args:
        nats_per_logit (`float`): Evidence that multiplies the odds of acceptance by e.
        even_odds_nats (`float`): Evidence at which acceptance and rejection are equally likely.
    """

    def __init__(self, *args: Any, nats_per_logit: float, even_odds_nats: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._nats_per_logit, self._even_odds_nats = nats_per_logit, even_odds_nats
        self.model_accepts_loss_kwargs = False  # the loss below is a mean: let `Trainer` divide it by the accumulation steps

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        accepted = inputs["labels"]
        with_audio, tokens = log_likelihoods(model, inputs["with_audio"])
        without_audio, tokens_without = log_likelihoods(model, inputs["without_audio"])
        evidence = with_audio.sum(dim=1) - without_audio.sum(dim=1)
        logits = (evidence - self._even_odds_nats) / self._nats_per_logit
        # A batch may hold no accepted trace.
        words = -(with_audio.sum(dim=1) * accepted).sum() / (tokens.sum(dim=1) * accepted).sum().clamp(min=1)
        words = words - without_audio.sum() / tokens_without.sum()
        loss = binary_cross_entropy_with_logits(logits, accepted) + words
        return (loss, {"logits": logits}) if return_outputs else loss

"""Training of the verifier: `Trainer` with the loss that makes likelihoods with and without sound tell traces apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import Trainer

from sightsound.training.verifier import log_likelihoods


class VerifierTrainer(Trainer):
    """
    Cross entropy of the verdicts given the evidence, and of the words themselves.

    The words: accepted traces given their sound, all traces given none. Without that, both likelihoods may fall as long as
    their difference is right, and with few examples they do. Batches are `PairCollator`'s.

    Args:
        nats_per_logit (`float`): Evidence that moves the odds of acceptance by a factor of e.
        even_odds_nats (`float`): Evidence at which acceptance is as likely as rejection.
    """

    def __init__(self, *args: Any, nats_per_logit: float, even_odds_nats: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._nats_per_logit, self._even_odds_nats = nats_per_logit, even_odds_nats
        self.model_accepts_loss_kwargs = False  # the loss below is a mean: let `Trainer` divide it by the accumulation steps

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        accepted = inputs["labels"]
        heard, heard_tokens = log_likelihoods(model, inputs["heard"])
        deaf, deaf_tokens = log_likelihoods(model, inputs["deaf"])
        evidence = heard.sum(dim=1) - deaf.sum(dim=1)
        logits = (evidence - self._even_odds_nats) / self._nats_per_logit
        # A batch may hold no accepted trace.
        words = -(heard.sum(dim=1) * accepted).sum() / (heard_tokens.sum(dim=1) * accepted).sum().clamp(min=1)
        words = words - deaf.sum() / deaf_tokens.sum()
        loss = binary_cross_entropy_with_logits(logits, accepted) + words
        return (loss, {"logits": logits}) if return_outputs else loss

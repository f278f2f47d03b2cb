"""TRL's SFTTrainer with the checkpoints of `checkpoints.py` and `validation.py`. For audio it needs only the collator."""

from typing import Any

from transformers import PreTrainedModel
from trl import SFTTrainer

from sightsound.models.family import family_of
from sightsound.training.checkpoints import FullWeightsResume
from sightsound.training.validation import BestByAccuracy


class AudioSFTTrainer(BestByAccuracy, FullWeightsResume, SFTTrainer):
    """`SFTTrainer` that selects the best checkpoint by accuracy and restores every weight when it resumes."""

    def __init__(self, model: PreTrainedModel, **kwargs: Any):
        family_of(model.config).freeze_fixed_parts(model)
        super().__init__(model, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # TRL would count the trained tokens from zero again.
        counts = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
        if checkpoint is not None and counts:
            self._total_train_tokens = counts[-1]

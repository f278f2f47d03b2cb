"""TRL's SFTTrainer with the checkpoints of `checkpoints.py` and `validation.py`; a collator is all that audio needs."""

from trl import SFTTrainer

from .checkpoints import FullWeightsResume
from .validation import BestByAccuracy


class AudioSFTTrainer(BestByAccuracy, FullWeightsResume, SFTTrainer):
    """`SFTTrainer` that answers validation questions, and resumes and ends with every weight."""

"""
Training: the parts of the recipes `sft.py`, `grpo.py` and `verifier.py`.

- `recipe.py`: command line and checks; `run.py`: the common start and end of a recipe
- `audio_rows.py`: the rows to train on; `collator.py`: rows to batches; `validation.py`: accuracy while training
- `sft.py`, `grpo.py`, `verifier_trainer.py`: the trainers
- `verifier.py`, `calibration.py`: the small verifier and its threshold
- `distributed.py`: several processes; `checkpoints.py`: save and resume
- `vllm_rollouts.py`, `rollout_buffer.py`: completions for GRPO
- `card.py`, `trained_on.py`: the training data of a student, for its card
- `sharing/`: prompts that completions share
"""

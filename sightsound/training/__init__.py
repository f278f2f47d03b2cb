"""
Training: what the recipes `sft.py`, `grpo.py` and `verifier.py` are made of.

- `recipe.py`: arguments, checks and outputs that the recipes share
- `sft.py`, `grpo.py`, `verifier.py`: the trainers
- `collator.py`: rows to batches; `validation.py`: accuracy while training
- `distributed.py`: several processes; `checkpoints.py`: save and resume
- `vllm_rollouts.py`, `rollout_buffer.py`: completions for GRPO
- `card.py`, `trained_on.py`: what a student was trained on
- `sharing/`: prompts and clips that completions share
"""

"""
Training: the parts of the recipes `sft.py`, `grpo.py` and `verifier.py`.

- `recipe.py`: the command line of a recipe, and the checks that refuse its fields
- `run.py`: the common start and end of the recipes; which settings a rerun must repeat
- `distributed.py`: several processes; refuses a launch that does not match the recipe
- `audio_rows.py`: the rows to train on
- `collator.py`: rows to batches
- `sft.py`: the trainer of SFT
- `grpo.py`: the trainer of GRPO
- `rollout_buffer.py`: completions in a checkpoint of GRPO
- `vllm_rollouts.py`: completions from vLLM
- `validation.py`: accuracy during training, and the best checkpoint
- `checkpoints.py`: save and resume
- `verifier.py`: the small verifier as a checker
- `verifier_trainer.py`: the trainer of the verifier
- `calibration.py`: the threshold of the verifier
- `card.py`: model cards
- `trained_on.py`: the questions that a model was trained on
- `sharing/`: prompts and clips that completions share
"""

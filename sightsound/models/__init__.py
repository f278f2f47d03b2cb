"""
Models: one file per student family, and how checkpoints are loaded.

- `family.py`: what a student family is; every family is found by its `model_type`
- `qwen2_audio.py`: all that is particular to Qwen2-Audio
- `loading.py`: load a checkpoint of any family
- `adapters.py`: read a LoRA, find its base, check its weights, merge it
- `sources.py`: name a model and pin its commit
"""

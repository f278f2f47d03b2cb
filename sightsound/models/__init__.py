"""
Models: one file per student family, and how checkpoints are loaded.

- `family.py`: what a student family has to provide
- `qwen2_audio.py`: the family Qwen2-Audio
- `loading.py`: load a checkpoint of any family
- `adapters.py`: LoRA adapters
- `sources.py`: name a model and pin its commit
"""

"""
Models: one file per student family, and how models are loaded.

- `family.py`: what a student family is; to add one, write one file with a `FAMILY`
- `qwen2_audio.py`: the family Qwen2-Audio
- `loading.py`: load a model and its processor
- `adapters.py`: find, check and merge a LoRA
- `sources.py`: name a model and pin its commit
"""

"""
Models: one file per student family, and how checkpoints are loaded.

- `qwen2_audio.py`: all that is particular to Qwen2-Audio
- `loading.py`: load a checkpoint of any family
- `sources.py`: name a model and pin its commit
"""

"""
Models: one file per student family, each with a `FAMILY`, and how models are loaded.

- `family.py`: what a student family is; to add one, write one file with a `FAMILY`
- `loading.py`: load a model and its processor
- `whisper.py`: what the families with Whisper's encoder share
- `thinker.py`: what the Omni families share
- `adapters.py`: find, check and merge a LoRA
- `origins.py`: where a model comes from, and so its licence and the window that a server does not tell
- `sources.py`: name a model and pin its commit
"""

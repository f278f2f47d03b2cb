"""
SightSound-R1: the library beneath the scripts in `dataset_builders/`, `recipes/` and `evaluation/`.

The folders are in layers, the lowest first. A file imports only from lower layers or its own folder:

- layer 1: `cli.py` command lines and errors, `launchers.py` errors below a launcher's traceback, `locks.py` folder locks
- layer 2: `stage.py` work that can be killed and run again; `data/` columns, parquet, audio, frames
- layer 3: `method/` the paper: prompts, answers, rewards, selection, verdicts; `hub/` cards and publishing
- layer 4: `benchmarks/` one file each; `models/` one file per student family; `scale/` ranks on many machines
- layer 5: `engines/` send requests to models; `building/` from annotations and clips to a dataset
- layer 6: `training/` SFT, GRPO and the verifier
"""

__version__ = "0.1.0"

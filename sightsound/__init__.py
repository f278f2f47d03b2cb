"""
SightSound-R1: the library beneath the scripts in `dataset_builders/`, `recipes/` and `evaluation/`.

One folder per room, from the ground up; a file imports only from lower floors or its own folder:

- floor 1: `cli.py` command lines and errors, `launchers.py` errors below a launcher's traceback, `locks.py` one writer a folder
- floor 2: `stage.py` work that can be killed and run again; `data/` columns, parquet, audio, frames
- floor 3: `method/` the paper: prompts, answers, rewards, selection, verdicts; `hub/` cards and publishing
- floor 4: `benchmarks/` one file each; `models/` one file per student family; `scale/` ranks on many machines
- floor 5: `engines/` who answers requests; `building/` from annotations and clips to a dataset
- floor 6: `training/` SFT, GRPO and the verifier
"""

__version__ = "0.1.0"

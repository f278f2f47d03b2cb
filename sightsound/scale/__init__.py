"""
Scale: a stage on many machines.

- `ranks.py`: slice the questions of a stage, one slice per rank, and join the results
- `executors.py`: start the ranks with datatrove: on this machine, under Ray, or as Slurm jobs
"""

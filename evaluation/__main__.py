"""
Evaluate a model on a benchmark, or gather finished runs into a report.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --model sft-tts_agfv/model --modality audio --method cot \
        --controls silent swapped --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation report --runs evaluation-runs/* --output_dir report

`python -m evaluation run --help` and `python -m evaluation report --help` list the flags.
"""

import sys

from sightsound.cli import run


def main() -> None:
    commands = ("run", "report")
    given = sys.argv[1:2]
    if given in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    if given[0] not in commands:
        from sightsound.cli import InputError

        raise InputError(f"unknown command '{given[0]}'; expected one of {', '.join(commands)}")
    if given[0] == "run":
        from evaluation.generate import main as command
    else:
        from evaluation.report import main as command
    command(sys.argv[2:])


if __name__ == "__main__":
    run(main)

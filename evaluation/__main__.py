"""
Evaluate a model on a benchmark, gather finished runs into a report, or make a page to look at traces and answers with.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --model sft-tts_agfv/model --modality audio --method cot \
        --controls silent swapped --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation report --runs evaluation-runs/* --output_dir report
    python -m evaluation browse --dataset avqa-audio --corpus corpus --output_dir browser

`python -m evaluation run --help`, `report --help` and `browse --help` list the flags.
"""

import sys
from importlib import import_module

from sightsound.cli import InputError, run


COMMANDS = {
    "run": "evaluation.generate",
    "score": "evaluation.score",
    "compare": "evaluation.compare",
    "report": "evaluation.report",
    "browse": "evaluation.browser",
}


def main() -> None:
    given = sys.argv[1:2]
    if given in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    if given[0] not in COMMANDS:
        raise InputError(f"unknown command '{given[0]}'; expected one of {', '.join(COMMANDS)}")
    import_module(COMMANDS[given[0]]).main(sys.argv[2:])


if __name__ == "__main__":
    run(main)

r"""
Evaluate a model on benchmarks, score and compare outputs, gather finished runs into a report, make a page to look at
them, or publish a checkpoint with its results.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --model sft-tts_agfv/model --modality audio --method cot \
        --controls silent swapped --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation score --benchmark mmau --annotations mmau-test-mini.json --predictions outputs.json
    python -m evaluation compare --runs evaluation-runs/sft-tts_agfv evaluation-runs/sft-cot
    python -m evaluation report --runs evaluation-runs/* --output_dir report
    python -m evaluation browse --dataset avqa-audio --corpus corpus --output_dir browser
    python -m evaluation publish --model sft-tts_agfv/model --runs evaluation-runs/sft-tts_agfv --push_to_hub ORG/NAME
    python -m evaluation collect --title "SightSound-R1" --datasets ORG/avqa-audio --models ORG/NAME

`python -m evaluation run --help`, and likewise the others, list the flags.
"""

import sys
from importlib import import_module

from sightsound.cli import InputError, run


COMMANDS = {
    "run": "evaluation.run",
    "score": "evaluation.score",
    "compare": "evaluation.compare",
    "report": "evaluation.report",
    "browse": "evaluation.browse",
    "publish": "evaluation.publish",
    "collect": "evaluation.collect",
}


def main() -> None:
    given = sys.argv[1:2]
    if given in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    if given[0] not in COMMANDS:
        raise InputError(f"unknown command '{given[0]}'; expected one of {', '.join(COMMANDS)}")
    sys.argv[0] = f"python -m evaluation {given[0]}"  # what argparse calls the program: it would say `__main__.py`
    import_module(COMMANDS[given[0]]).main(sys.argv[2:])


if __name__ == "__main__":
    run(main)

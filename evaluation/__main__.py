r"""
Evaluate models on benchmarks: run inference, score, compare and judge outputs, write a report or a page, publish the results.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --model sft-tts_agfv/model --modality audio --method cot \
        --controls silent swapped --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation score --benchmark mmau --annotations mmau-test-mini.json --predictions outputs.json
    python -m evaluation compare --runs evaluation-runs/sft-tts_agfv evaluation-runs/sft-cot
    python -m evaluation judge --run evaluation-runs/grpo/mmar --annotations MMAR-meta.jsonl --judge gpt-4o-2024-11-20 \
        --base_url https://api.openai.com/v1 --output_dir judgements
    python -m evaluation report --runs evaluation-runs/* --output_dir report
    python -m evaluation browse --dataset avqa-audio --corpus corpus --output_dir browser
    python -m evaluation publish --model sft-tts_agfv/model --runs evaluation-runs/sft-tts_agfv --push_to_hub ORG/NAME
    python -m evaluation collect --title "SightSound-R1" --datasets ORG/avqa-audio --models ORG/NAME

`python -m evaluation COMMAND --help` lists the flags of a command.
"""

import sys
from importlib import import_module

from sightsound.cli import InputError, run


# Each is a module with a `main(argv)`.
COMMANDS = ("run", "score", "compare", "judge", "report", "browse", "publish", "collect")


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in COMMANDS:
        raise InputError(f"unknown command '{command}'; expected one of {', '.join(COMMANDS)}")
    sys.argv[0] = f"python -m evaluation {command}"  # for argparse's messages, which would name `__main__.py`
    import_module(f"evaluation.{command}").main(sys.argv[2:])


if __name__ == "__main__":
    run(main)

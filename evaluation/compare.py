"""
Compare two runs on the same questions, in pairs.

    python -m evaluation compare --runs evaluation-runs/sft-tts_agfv evaluation-runs/sft-cot

Tells the difference of their accuracies with its 95 % interval, by bootstrap over clips, and McNemar's exact test.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evaluation.benchmarks import Row
from evaluation.controls import NO_CONTROL
from evaluation.predictions import read_rows
from evaluation.statistics import Comparison, compare
from sightsound.cli import InputError, parse_arguments


@dataclass
class CompareArguments:
    runs: list[str] = field(metadata={"help": "two folders written by `python -m evaluation run`"})
    json: bool = field(default=False, metadata={"help": "print the figures as JSON"})


def read_run(folder: str) -> dict[str, dict[str, Row]]:
    """A run's answers with the clip: per benchmark, the rows by id."""
    # A run over several benchmarks has a folder of each in its own.
    files = sorted(Path(folder).glob("data/predictions-*.parquet")) + sorted(Path(folder).glob("*/data/predictions-*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no data/predictions-*.parquet; expected a folder that `evaluation run` wrote")
    runs: dict[str, dict[str, Row]] = {}
    for file in files:
        for row in read_rows(str(file)):
            if row["control"] == NO_CONTROL:
                runs.setdefault(row["benchmark"], {})[row["id"]] = row
    return runs


def compare_runs(first: dict[str, Row], second: dict[str, Row], name: str) -> Comparison:
    """
    Two runs on one benchmark.

    Raises:
        `InputError`: They did not answer the same questions.
    """
    revisions = {row["benchmark_revision"] for run in (first, second) for row in run.values()}
    if len(revisions) > 1:
        raise InputError(f"the runs answer {name} in different revisions: {', '.join(sorted(revisions))}; run both on one")
    alone = first.keys() ^ second.keys()
    if alone:
        raise InputError(f"{len(alone)} questions of {name} are in one run only (first: {min(alone)}); was --limit another?")
    correct = ([run[row_id]["correct"] for row_id in first] for run in (first, second))
    return compare(*correct, [row["video_id"] for row in first.values()])


def main(argv: list[str]) -> None:
    args = parse_arguments(CompareArguments, __doc__, argv)
    if len(args.runs) != 2:
        raise InputError(f"--runs: expected two folders, found {len(args.runs)}")
    first, second = (read_run(folder) for folder in args.runs)
    common = [name for name in first if name in second]
    if not common:
        raise InputError(f"the runs have no benchmark in common: {', '.join(first)} and {', '.join(second)}")
    compared = {name: compare_runs(first[name], second[name], name) for name in common}
    if args.json:
        print(json.dumps({name: asdict(comparison) for name, comparison in compared.items()}, indent=2))
        return
    for name, c in compared.items():
        print(f"{name}, {c.n} questions: {args.runs[0]} less {args.runs[1]}: {c} points")
        print(f"right in the first only: {c.only_first}, in the second only: {c.only_second}; McNemar p = {c.p_value:.2g}")

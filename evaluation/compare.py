"""
Compare two runs on the same questions, in pairs.

    python -m evaluation compare --runs evaluation-runs/sft-tts_agfv evaluation-runs/sft-cot

Tells the difference of their accuracies with its 95 % interval, by bootstrap over clips, and McNemar's exact test.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation.benchmarks import Row, get_benchmark
from evaluation.finished_runs import answers_of, find_runs
from evaluation.statistics import Comparison, compare
from sightsound.cli import InputError, parse_arguments


@dataclass
class CompareArguments:
    runs: list[str] = field(metadata={"help": "two folders written by `python -m evaluation run`"})
    json: bool = field(default=False, metadata={"help": "print the figures as JSON"})


def compare_runs(first: dict[str, Row], second: dict[str, Row], name: str) -> Comparison:
    """
    Two runs on one benchmark, over the questions of its average.

    Ids repeat across splits: the questions are compared by what the predictions hold of them.

    Raises:
        `InputError`: They did not answer the same questions, or one does not tell which are averaged.
    """
    revisions = {row["benchmark_revision"] for run in (first, second) for row in run.values()}
    if len(revisions) > 1:
        raise InputError(f"the runs answer {name} in different revisions: {', '.join(sorted(revisions))}; run both on one")
    others = [row_id for row_id in first if row_id in second and _question(first[row_id]) != _question(second[row_id])]
    if others:
        told = f"on {name} the runs are about other questions under the same ids ({len(others)} of them, first: {others[0]})"
        raise InputError(f"{told}; was another --split asked?")
    alone = first.keys() ^ second.keys()
    if alone:
        is_part = first.keys() < second.keys() or second.keys() < first.keys()
        cause = "was --limit another?" if is_part else "was another --split asked?"
        raise InputError(f"{len(alone)} questions of {name} are in one run only (first: {min(alone)}); {cause}")
    benchmark = get_benchmark(name)
    if any(benchmark.counted not in (None, *row) for run in (first, second) for row in run.values()):
        raise InputError(f"predictions on {name} lack {benchmark.counted}: not by this version; evaluate again")
    counted = [row_id for row_id, row in first.items() if benchmark.counts(row)]
    correct = ([run[row_id]["correct"] for row_id in counted] for run in (first, second))
    return compare(*correct, [first[row_id]["video_id"] for row_id in counted])


def _question(row: Row) -> tuple[Any, ...]:
    return row["video_id"], row["choices"], row["gold"]


def main(argv: list[str]) -> None:
    args = parse_arguments(CompareArguments, __doc__, argv)
    if len(args.runs) != 2:
        raise InputError(f"--runs: expected two folders, found {len(args.runs)}")
    first, second = ({run.results["benchmark"]: answers_of(run) for run in find_runs([folder])} for folder in args.runs)
    common = [name for name in first if name in second]
    if not common:
        raise InputError(f"the runs have no benchmark in common: {', '.join(first)} and {', '.join(second)}")
    if alone := sorted(first.keys() ^ second.keys()):
        print(f"not compared, in one of the runs only: {', '.join(alone)}", file=sys.stderr)
    compared = {name: compare_runs(first[name], second[name], name) for name in common}
    if args.json:
        print(json.dumps({name: asdict(comparison) for name, comparison in compared.items()}, indent=2))
        return
    for name, c in compared.items():
        print(f"{name}, {c.n} questions: {args.runs[0]} less {args.runs[1]}: {c} points")
        print(f"right in the first only: {c.only_first}, in the second only: {c.only_second}; McNemar p = {c.p_value:.2g}")

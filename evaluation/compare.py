r"""
Compare two runs, or two files of predictions, on the same questions in pairs.

    python -m evaluation compare --runs evaluation-runs/sft-tts_agfv evaluation-runs/sft-cot
    python -m evaluation compare --runs theirs.json evaluation-runs/sft-cot --benchmark mmau --annotations mmau-test-mini.json

Tells the difference of their accuracies with its 95 % interval, by bootstrap over clips, and McNemar's exact test. All is by
the paper's protocol. A run's `predictions-*.parquet` says what is right. Files of others, in the shapes that `python -m
evaluation score` reads, need the questions: `--benchmark` with `--annotations` or `--dataset`; both sides are then graded anew.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.benchmarks import Row, load_questions
from evaluation.reporting.finished_runs import answers_in, answers_of, find_runs, predictions_file
from evaluation.running.controls import NO_CONTROL
from evaluation.scoring.predictions import Predictions
from evaluation.scoring.protocols import PAPER, decide_all
from evaluation.scoring.statistics import Comparison, compare
from sightsound.benchmarks import benchmark_names, get_benchmark
from sightsound.cli import InputError, parse_arguments


@dataclass
class CompareArguments:
    runs: list[str] = field(metadata={"help": "two folders written by `python -m evaluation run`, or files of predictions"})
    benchmark: str | None = field(
        default=None, metadata={"help": f"what files of others answer: one of {', '.join(benchmark_names())}"}
    )
    annotations: str | None = field(default=None, metadata={"help": "its official annotation file"})
    dataset: str | None = field(default=None, metadata={"help": "or the dataset built from it, folder or Hub id"})
    split: str | None = field(default=None, metadata={"help": "split of --dataset (default: the benchmark's)"})
    allow_unpinned: bool = field(default=False, metadata={"help": "take another annotation file than the pinned one"})
    json: bool = field(default=False, metadata={"help": "print the figures as JSON"})


def compare_runs(first: dict[str, Row], second: dict[str, Row], name: str, are_files: bool = False) -> Comparison:
    """
    Two runs on one benchmark, over the questions of its average.

    Ids repeat across splits: the questions are compared by what the predictions hold of them.

    Args:
        first, second (`dict`): Rows of predictions by question id.
        name (`str`): The benchmark.
        are_files (`bool`): They come from files of others, for which no flag of ours was given.

    Raises:
        `InputError`: They did not answer the same questions, or one does not tell which are averaged.
    """
    splits = [split_told(run) for run in (first, second)]
    if all(splits) and splits[0] != splits[1]:
        seen = f"split {splits[0]} in the first, split {splits[1]} in the second"
        raise InputError(f"on {name} the runs are about other questions: {seen}; ask both the same split")
    revisions = {row["benchmark_revision"] for run in (first, second) for row in run.values()}
    if len(revisions) > 1:
        raise InputError(f"the runs answer {name} in different revisions: {', '.join(sorted(revisions))}; run both on one")
    others = [row_id for row_id in first if row_id in second and _question(first[row_id]) != _question(second[row_id])]
    if others:
        told = f"on {name} the runs are about other questions under the same ids ({len(others)} of them, first: {others[0]})"
        raise InputError(f"{told}; was another --split asked?")
    alone = first.keys() ^ second.keys()
    if alone and are_files:
        counts = (
            f"{len(first.keys() - second.keys())} only in the first, {len(second.keys() - first.keys())} only in the second"
        )
        remedy = "leave only questions that both answer in the files, or add the outputs that are missing"
        raise InputError(f"on {name} the files answer different questions: {counts} (such as {min(alone)}); {remedy}")
    if alone:
        is_part = first.keys() < second.keys() or second.keys() < first.keys()
        cause = "was --limit another?" if is_part else "was another --split asked?"
        raise InputError(f"{len(alone)} questions of {name} are in one run only (first: {min(alone)}); {cause}")
    benchmark = get_benchmark(name)
    if benchmark.averages_in_paper and any("in_paper" not in row for run in (first, second) for row in run.values()):
        raise InputError(f"predictions on {name} lack in_paper: not by this version; evaluate again")
    counted = [row_id for row_id, row in first.items() if benchmark.counts(row)]
    correct = ([run[row_id]["correct"] for row_id in counted] for run in (first, second))
    return compare(*correct, [first[row_id]["video_id"] for row_id in counted])


def split_told(answers: dict[str, Row]) -> str | None:
    """The split that answers are about; None where that is not known, as of an annotation file."""
    return " and ".join(sorted({row["split"] for row in answers.values() if row.get("split")})) or None


def grade(path: str, benchmark: str, questions: list[Row], revision: str, split: str | None) -> dict[str, Row]:
    """A file of predictions by question id, as a run's predictions are: only the questions that it has outputs to."""
    given = Predictions(path, benchmark, questions, revision)
    decisions = decide_all(benchmark, [PAPER], given.outputs[NO_CONTROL], questions)[PAPER]
    return {
        row["id"]: row | {"gold": row["answer"], "correct": decision.correct, "benchmark_revision": revision, "split": split}
        for row, decision in zip(questions, decisions, strict=True)
        if row["id"] in given.ids
    }


def read_sides(args: CompareArguments) -> list[dict[str, dict[str, Row]]]:
    """
    Of each side, its answers by benchmark and question id.

    Raises:
        `InputError`: A side is neither a finished run nor a file of predictions, or does not tell what is right.
    """
    if args.benchmark is None:
        if args.annotations or args.dataset:
            raise InputError(f"--benchmark: which of {', '.join(benchmark_names())} are these questions of?")
        return [
            answers_in(side)
            if Path(side).is_file()
            else {run.results["benchmark"]: answers_of(run) for run in find_runs([side])}
            for side in args.runs
        ]
    questions, revision, split = load_questions(args.benchmark, args.annotations, args.dataset, args.split, args.allow_unpinned)
    if args.annotations:
        split = None  # it is the file's name
    sides = []
    for side in args.runs:
        if Path(side).is_dir():
            runs = {run.results["benchmark"]: run.folder for run in find_runs([side])}
            if args.benchmark not in runs:
                raise InputError(f"{side} holds no run on {args.benchmark}, but on {', '.join(runs)}")
            side = str(predictions_file(Path(runs[args.benchmark]), args.benchmark))
        sides.append({args.benchmark: grade(side, args.benchmark, questions, revision, split)})
    return sides


def _question(row: Row) -> tuple[Any, ...]:
    return row["video_id"], row["choices"], row["gold"]


def main(argv: list[str]) -> None:
    args = parse_arguments(CompareArguments, __doc__, argv)
    if len(args.runs) != 2:
        raise InputError(f"--runs: expected two folders, found {len(args.runs)}; each may also be a file of predictions")
    first, second = read_sides(args)
    common = [name for name in first if name in second]
    if not common:
        raise InputError(f"the runs have no benchmark in common: {', '.join(first)} and {', '.join(second)}")
    if alone := sorted(first.keys() ^ second.keys()):
        print(f"not compared, in one of the runs only: {', '.join(alone)}", file=sys.stderr)
    are_files = args.benchmark is not None and not all(Path(side).is_dir() for side in args.runs)
    compared = {name: compare_runs(first[name], second[name], name, are_files) for name in common}
    if args.json:
        print(json.dumps({name: asdict(c) | {"split": split_told(first[name])} for name, c in compared.items()}, indent=2))
        return
    for name, c in compared.items():
        of_split = f" of split {split}" if (split := split_told(first[name])) else ""
        if args.annotations:
            of_split = f" of {Path(args.annotations).name}"
        print(f"{name}, {c.n} questions{of_split}: {args.runs[0]} less {args.runs[1]}: {c} points")
        print(f"right in the first only: {c.only_first}, in the second only: {c.only_second}; McNemar p = {c.p_value:.2g}")

r"""
Compare two runs, or two files of predictions, question by question.

    python -m evaluation compare --runs evaluation-runs/sft-tts_agfv evaluation-runs/sft-cot
    python -m evaluation compare --runs theirs.json evaluation-runs/sft-cot --benchmark mmau --annotations mmau-test-mini.json

Prints the difference of the two accuracies with its 95 % interval (bootstrap over clips) and McNemar's exact test, by the
paper's protocol. The `predictions-*.parquet` of a run holds the correct answers. Files of other tools, in the formats that
`python -m evaluation score` reads, do not: give the questions with `--benchmark` and `--annotations` or `--dataset`. Both
sides are then graded again.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evaluation.benchmarks import Row, load_questions
from evaluation.reporting.finished_runs import answers_in, answers_of, find_runs, predictions_file
from evaluation.running.controls import NO_CONTROL
from evaluation.scoring.paired_runs import compare_runs, split_in
from evaluation.scoring.predictions import Predictions
from evaluation.scoring.protocols import PAPER, decide_all
from sightsound.benchmarks import benchmark_names
from sightsound.cli import InputError, parse_arguments


@dataclass
class CompareArguments:
    runs: list[str] = field(metadata={"help": "two folders written by `python -m evaluation run`, or files of predictions"})
    benchmark: str | None = field(
        default=None, metadata={"help": f"benchmark that files of other tools answer: one of {', '.join(benchmark_names())}"}
    )
    annotations: str | None = field(default=None, metadata={"help": "its official annotation file"})
    dataset: str | None = field(default=None, metadata={"help": "or the dataset built from it, folder or Hub id"})
    split: str | None = field(default=None, metadata={"help": "split of --dataset (default: the benchmark's)"})
    allow_unpinned: bool = field(default=False, metadata={"help": "accept an annotation file other than the pinned one"})
    json: bool = field(default=False, metadata={"help": "print the figures as JSON"})


def read_sides(args: CompareArguments) -> list[dict[str, dict[str, Row]]]:
    """
    The answers of each side, by benchmark and question id.

    Raises:
        `InputError`: A side is neither a finished run nor a file of predictions, or does not hold the correct answers.
    """
    if args.benchmark is not None:
        return grade_sides(args, args.benchmark)
    if args.annotations or args.dataset:
        raise InputError(f"--benchmark: which of {', '.join(benchmark_names())} are these questions of?")
    return [
        answers_in(side) if Path(side).is_file() else {run.results["benchmark"]: answers_of(run) for run in find_runs([side])}
        for side in args.runs
    ]


def grade_sides(args: CompareArguments, benchmark: str) -> list[dict[str, dict[str, Row]]]:
    """The answers of each side on the questions that the flags give, graded again."""
    questions, revision, split = load_questions(benchmark, args.annotations, args.dataset, args.split, args.allow_unpinned)
    sides = []
    for side in args.runs:
        path = side
        if Path(side).is_dir():
            folders = {run.results["benchmark"]: run.folder for run in find_runs([side])}
            if benchmark not in folders:
                raise InputError(f"{side} holds no run on {benchmark}, but on {', '.join(folders)}")
            path = str(predictions_file(Path(folders[benchmark]), benchmark))
        # Of an annotation file, `split` is the file's name.
        sides.append({benchmark: grade(path, benchmark, questions, revision, None if args.annotations else split)})
    return sides


def grade(path: str, benchmark: str, questions: list[Row], revision: str, split: str | None) -> dict[str, Row]:
    """A file's predictions by question id, in the form of a run's. Questions that the file does not answer are left out."""
    predictions = Predictions(path, benchmark, questions, revision)
    decisions = decide_all(benchmark, [PAPER], predictions.outputs[NO_CONTROL], questions)[PAPER]
    return {
        row["id"]: row | {"gold": row["answer"], "correct": decision.correct, "benchmark_revision": revision, "split": split}
        for row, decision in zip(questions, decisions, strict=True)
        if row["id"] in predictions.ids
    }


def main(argv: list[str]) -> None:
    args = parse_arguments(CompareArguments, __doc__, argv)
    if len(args.runs) != 2:
        raise InputError(f"--runs: expected two folders, found {len(args.runs)}; each may also be a file of predictions")
    first, second = read_sides(args)
    common = [name for name in first if name in second]
    if not common:
        raise InputError(f"the runs have no benchmark in common: {', '.join(first)} and {', '.join(second)}")
    if unpaired := sorted(first.keys() ^ second.keys()):
        print(f"not compared, in one of the runs only: {', '.join(unpaired)}", file=sys.stderr)
    are_files = args.benchmark is not None and not all(Path(side).is_dir() for side in args.runs)
    compared = {name: compare_runs(first[name], second[name], name, are_files) for name in common}
    if args.json:
        print(json.dumps({name: asdict(c) | {"split": split_in(first[name])} for name, c in compared.items()}, indent=2))
        return
    for name, c in compared.items():
        of_split = f" of split {split}" if (split := split_in(first[name])) else ""
        if args.annotations:
            of_split = f" of {Path(args.annotations).name}"
        print(f"{name}, {c.n} questions{of_split}: {args.runs[0]} less {args.runs[1]}: {c} points")
        discordant = f"correct only in the first: {c.only_first}, correct only in the second: {c.only_second}"
        print(f"{discordant}; McNemar p = {c.p_value:.2g}")

r"""
Score a file of predictions, ours or others', by the official and the paper's protocol side by side.

    python -m evaluation score --benchmark mmau --annotations mmau-test-mini.json --predictions outputs.json \
        --protocol official,paper

`--predictions` is a run's `data/predictions-*.parquet`, a JSON list or JSON lines with `id` and `model_output` (or
`model_prediction`). The questions are the official annotation file, or the dataset built from it (`--dataset`). Questions
without an output count as unanswered, and are told.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.benchmarks import BENCHMARKS, Row, get_benchmark, load_benchmark, part_asked, read_annotations
from evaluation.controls import CONTROLS, NO_CONTROL, OF_SOUND, verdict
from evaluation.predictions import Predictions
from evaluation.protocols import PAPER, protocols_of
from evaluation.scoring import score_run
from evaluation.sections import gain_cell, percent, table, with_interval
from sightsound.cli import InputError, parse_arguments


@dataclass
class ScoreArguments:
    predictions: str = field(metadata={"help": "the outputs: .parquet, .json or .jsonl"})
    benchmark: str = field(metadata={"help": "which benchmark", "choices": list(BENCHMARKS)})
    annotations: str | None = field(default=None, metadata={"help": "its official annotation file"})
    dataset: str | None = field(default=None, metadata={"help": "or the dataset built from it, folder or Hub id"})
    split: str | None = field(default=None, metadata={"help": "split of --dataset (default: the benchmark's)"})
    protocol: str | None = field(default=None, metadata={"help": "official, paper, or both with a comma (default: all)"})
    allow_unpinned: bool = field(default=False, metadata={"help": "score against another annotation file than the pinned one"})
    json: bool = field(default=False, metadata={"help": "print every figure as JSON instead of tables"})


def protocols_in(args: ScoreArguments) -> list[str]:
    """What was asked for, in that order."""
    known = protocols_of(args.benchmark)
    asked = known if args.protocol is None else list(dict.fromkeys(name.strip() for name in args.protocol.split(",")))
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"--protocol: {args.benchmark} has no protocol '{unknown[0]}'; expected {', '.join(known)}")
    return asked


def load_questions(args: ScoreArguments) -> tuple[list[Row], str]:
    """The benchmark's rows without their sound, and the revision they come from."""
    if (args.annotations is None) == (args.dataset is None):
        raise InputError("give the questions: either --annotations, the official file, or --dataset, built from it")
    if args.annotations is not None:
        return read_annotations(args.benchmark, args.annotations, args.allow_unpinned)
    rows, revision = load_benchmark(args.benchmark, args.dataset, args.split, limit=None)
    return rows.remove_columns("audio").to_list(), revision


def figures_table(by_protocol: dict[str, dict[str, Any]]) -> list[str]:
    """A row per group of questions, a column per protocol."""
    first = next(iter(by_protocol.values()))
    rows: list[list[Any]] = []

    def add(name: str, parts: list[dict[str, Any]]) -> None:
        rows.append([name, parts[0]["n"], *map(with_interval, parts)])

    add("average", list(by_protocol.values()))
    if "all" in first:
        add("all questions", [figures["all"] for figures in by_protocol.values()])
    for group in [name for name in first if name.startswith("by_")]:
        for name in first[group]:
            label = group.removeprefix("by_").replace("_", " ")
            add(f"{label}: {name or 'not told'}", [figures[group][name] for figures in by_protocol.values()])
    for told, key in (("unanswered, %", "unanswered"), ("error clustered by clip", "error")):
        rows.append([told, first["n"], *(percent(figures[key]) for figures in by_protocol.values())])
    return table(["questions", "n", *by_protocol], rows)


def controls_table(scored: dict[str, Any]) -> list[str]:
    """What the run gains over each of its controls, under one protocol."""
    results = scored["results"]
    rows = [[CONTROLS[n], with_interval(results[n]), gain_cell(scored, n)] for n in CONTROLS if n in results]
    return table(["control", "accuracy", "gain of the clip"], rows)


def main(argv: list[str]) -> None:
    args = parse_arguments(ScoreArguments, __doc__, argv)
    protocols = protocols_in(args)
    questions, revision = load_questions(args)
    given = Predictions(args.predictions, args.benchmark, questions, revision)
    scored = score_run(args.benchmark, protocols, given.outputs, given.rows)
    pinned = get_benchmark(args.benchmark).pinned
    are_pinned = pinned.asks(questions)
    counts = {
        "questions": len(questions),
        "benchmark_questions": pinned.questions,
        "benchmark_pinned": are_pinned,
        "missing": given.missing,
        "not_text": given.not_text,
    }
    if args.json:
        told = {"benchmark": args.benchmark, "benchmark_revision": revision, "predictions": Path(args.predictions).name}
        print(json.dumps({**told, **counts, "protocols": scored}, indent=2))
        return
    main_protocol = scored[PAPER if PAPER in scored else protocols[0]]
    if any(name in given.outputs for name in OF_SOUND):
        print(verdict([(Path(args.predictions).name, main_protocol)]))
    told = "{} without a prediction, {} with an output that is no text"
    lost = {name: told.format(given.missing[name], given.not_text[name]) for name in given.outputs}
    asked = part_asked(len(questions), pinned.questions, are_pinned) or f"{len(questions):,} questions"
    print(f"{args.benchmark}, {revision}: {asked}, {lost[NO_CONTROL]}")
    for name in CONTROLS:
        if name in lost:
            print(f"{CONTROLS[name]}: {lost[name]}")
    print("\n".join(["", *figures_table({name: part["results"][NO_CONTROL] for name, part in scored.items()})]))
    if len(given.outputs) > 1:
        print("\n".join(["", *controls_table(main_protocol)]))

"""
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

from evaluation.benchmarks import BENCHMARKS, Row, load_benchmark, read_annotations
from evaluation.controls import CONTROLS, NO_CONTROL, OF_SOUND, verdict
from evaluation.predictions import Predictions
from evaluation.protocols import PAPER, protocols_of
from evaluation.scoring import Figures, score_run
from evaluation.statistics import Comparison
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


def _cell(figures: Figures | None) -> str:
    return "–" if figures is None else f"{figures['accuracy']:.1f} [{figures['low']:.1f}, {figures['high']:.1f}]"


def figures_table(by_protocol: dict[str, dict[str, Any]]) -> list[str]:
    """A row per group of questions, a column per protocol."""
    first = next(iter(by_protocol.values()))
    lines = [f"| questions | n | {' | '.join(by_protocol)} |", "| --- " * (len(by_protocol) + 2) + "|"]

    def add(name: str, parts: list[dict[str, Any]]) -> None:
        lines.append(f"| {name} | {parts[0]['n']} | {' | '.join(map(_cell, parts))} |")

    add("average", list(by_protocol.values()))
    if "all" in first:
        add("all questions", [figures["all"] for figures in by_protocol.values()])
    for group in [name for name in first if name.startswith("by_")]:
        for name in first[group]:
            label = group.removeprefix("by_").replace("_", " ")
            add(f"{label}: {name or 'not told'}", [figures[group][name] for figures in by_protocol.values()])
    for told, key in (("unanswered, %", "unanswered"), ("error clustered by clip", "error")):
        values = ["–" if figures[key] is None else f"{figures[key]:.1f}" for figures in by_protocol.values()]
        lines.append(f"| {told} | {first['n']} | {' | '.join(values)} |")
    return lines


def controls_table(scored: dict[str, Any]) -> list[str]:
    """What the run gains over each of its controls, under one protocol."""
    lines = ["| control | accuracy | gain of the clip |", "| --- | --- | --- |"]
    for name, gain in scored["gains"].items():
        lines.append(f"| {CONTROLS[name]} | {_cell(scored['results'][name])} | {Comparison(**gain)} |")
    return lines


def main(argv: list[str]) -> None:
    args = parse_arguments(ScoreArguments, __doc__, argv)
    protocols = protocols_in(args)
    questions, revision = load_questions(args)
    given = Predictions(args.predictions, args.benchmark, questions, revision)
    scored = score_run(args.benchmark, protocols, given.outputs, given.rows)
    counts = {"questions": len(questions), "missing": given.missing, "not_text": given.not_text}
    if args.json:
        told = {"benchmark": args.benchmark, "benchmark_revision": revision, "predictions": Path(args.predictions).name}
        print(json.dumps({**told, **counts, "protocols": scored}, indent=2))
        return
    main_protocol = scored[PAPER if PAPER in scored else protocols[0]]
    if any(name in main_protocol["gains"] for name in OF_SOUND):
        print(verdict([(Path(args.predictions).name, main_protocol["gains"])]))
    told = f"{given.missing[NO_CONTROL]} without a prediction, {given.not_text[NO_CONTROL]} with an output that is no text"
    print(f"{args.benchmark}, {revision}: {len(questions)} questions, {told}")
    print("\n".join(["", *figures_table({name: part["results"][NO_CONTROL] for name, part in scored.items()})]))
    if main_protocol["gains"]:
        print("\n".join(["", *controls_table(main_protocol)]))

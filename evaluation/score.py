r"""
Score a file of predictions, from `python -m evaluation run` or another tool, by the official and the paper's protocol.

    python -m evaluation score --benchmark mmau --annotations mmau-test-mini.json --predictions outputs.json \
        --protocol official,paper --rows_file decisions.jsonl

`--predictions` is a run's `data/predictions-*.parquet`, or JSON: a list, one object per line, or an object of rows or outputs
by id. A row has the question's `id` and an output under `output`, `raw_model_outputs`, `resps`, `filtered_resps`,
`model_output`, `response`, `model_prediction`, `answer_prediction` or `prediction`; the first of these keys in the file is
read. The question may be under `doc`, as in the samples of lmms-eval. Of a list of outputs the first one is scored. The
questions come from the official annotation file or from the dataset built from it (`--dataset`). Questions without an output
count as unanswered; their number is printed.

`--rows_file` writes one JSON line per question and protocol: `id`, `protocol`, `answer` (index of the choice from 0, or null),
`matched_by` (`none`: unanswered) and `correct`. If the predictions contain controls, every line also has `control` (`none`:
with the clip), and under `shuffled` the index is that of the shuffled choices. An official rule only decides right or wrong:
`answer` is then the one choice that the rule would call right, or null if it would call none or several right.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.benchmarks import load_questions, part_asked
from evaluation.reporting.sections import gain_cell, percent, skipped_line, with_interval
from evaluation.running.controls import AUDIO_CONTROLS, CONTROLS, NO_CONTROL
from evaluation.scoring.accuracy import score_run
from evaluation.scoring.audio_use import audio_use_statement
from evaluation.scoring.predictions import Predictions
from evaluation.scoring.protocols import OFFICIAL, PAPER, chosen_index, decide_all, protocols_of
from sightsound.benchmarks import benchmark_names, get_benchmark
from sightsound.cli import InputError, parse_arguments
from sightsound.hub.cards import markdown_table
from sightsound.stage import write_atomically


@dataclass
class ScoreArguments:
    predictions: str = field(metadata={"help": "file of outputs: .parquet, .json or .jsonl"})
    benchmark: str = field(metadata={"help": f"benchmark that they answer: one of {', '.join(benchmark_names())}"})
    annotations: str | None = field(default=None, metadata={"help": "its official annotation file"})
    dataset: str | None = field(default=None, metadata={"help": "or the dataset built from it, folder or Hub id"})
    split: str | None = field(default=None, metadata={"help": "split of --dataset (default: the benchmark's)"})
    protocol: str | None = field(default=None, metadata={"help": "official, paper, or both with a comma (default: all)"})
    allow_unpinned: bool = field(default=False, metadata={"help": "accept an annotation file other than the pinned one"})
    json: bool = field(default=False, metadata={"help": "print every figure as JSON instead of tables"})
    rows_file: str | None = field(default=None, metadata={"help": "file for the decision on every row, as JSON lines"})


def read_protocols(args: ScoreArguments) -> list[str]:
    """The protocols of `--protocol`, in that order."""
    known = protocols_of(args.benchmark)
    asked = known if args.protocol is None else list(dict.fromkeys(name.strip() for name in args.protocol.split(",")))
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"--protocol: {args.benchmark} has no protocol '{unknown[0]}'; expected {', '.join(known)}")
    return asked


def check_rows_file(args: ScoreArguments) -> None:
    """
    Check before scoring that `--rows_file` can be written.

    Raises:
        `InputError`: It is a folder, lies in a folder that does not exist, or is one of the inputs.
    """
    if args.rows_file is None:
        return
    target = Path(args.rows_file)
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"--rows_file {target}: expected the path of a file in a folder that exists")
    for name in ("predictions", "annotations"):
        source = getattr(args, name)
        if source is not None and target.exists() and Path(source).exists() and target.samefile(source):
            raise InputError(f"--rows_file {target} is the file of --{name}, which it would replace; choose another")


def decision_lines(benchmark: str, protocols: list[str], predictions: Predictions) -> Iterator[dict[str, Any]]:
    """The decision on every row, ordered by control, question and protocol."""
    for control, outputs in predictions.outputs.items():
        rows = predictions.rows[control]
        decided = decide_all(benchmark, protocols, outputs, rows)
        for i, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            for protocol in protocols:
                decision = decided[protocol][i]
                yield {
                    "id": row["id"],
                    **({"control": control} if len(predictions.outputs) > 1 else {}),
                    "protocol": protocol,
                    "answer": chosen_index(benchmark, protocol, decision, output, row),
                    "matched_by": decision.matched_by,
                    "correct": decision.correct,
                }


def _as_script_counts(part: dict[str, Any]) -> str:
    over = part.get("over_predicted")
    return "–" if over is None else f"{with_interval(over)} (n={over['n']}, {over['skipped']} skipped)"


def figures_table(by_protocol: dict[str, dict[str, Any]]) -> list[str]:
    """A row per group of questions, a column per protocol."""
    parts = list(by_protocol.values())
    first = parts[0]
    rows: list[list[Any]] = []

    def add(name: str, parts: list[dict[str, Any]]) -> None:
        rows.append([name, parts[0]["n"], *map(with_interval, parts)])

    def add_answered(name: str, parts: list[dict[str, Any]]) -> None:
        add(name, parts)
        over = [part["over_answered"] for part in parts]
        cells = ["–" if figures is None else f"{with_interval(figures)} (n={figures['n']})" for figures in over]
        rows.append([f"{name}, over the answered", "–", *cells])

    add_answered("average", parts)
    if any("over_predicted" in part for part in parts):
        cells = [_as_script_counts(part) for part in parts]
        rows.append(["average, as the official script counts", "–", *cells])
    if "all" in first:
        add_answered("all questions", [figures["all"] for figures in parts])
    for group in [name for name in first if name.startswith("by_")]:
        for name in first[group]:
            label = group.removeprefix("by_").replace("_", " ")
            add(f"{label}: {name or 'not given'}", [figures[group][name] for figures in parts])
    for name, key in (("unanswered, %", "unanswered"), ("error clustered by clip", "error")):
        rows.append([name, first["n"], *(percent(figures[key]) for figures in parts)])
    return markdown_table(["questions", "n", *by_protocol], rows)


def controls_table(scored: dict[str, Any]) -> list[str]:
    """What the run gains over each control, under one protocol."""
    results = scored["results"]
    rows = [[CONTROLS[n], with_interval(results[n]), gain_cell(scored, n)] for n in CONTROLS if n in results]
    return markdown_table(["control", "accuracy", "gain of the clip"], rows)


def main(argv: list[str]) -> None:
    args = parse_arguments(ScoreArguments, __doc__, argv)
    protocols = read_protocols(args)
    check_rows_file(args)
    questions, revision, split = load_questions(args.benchmark, args.annotations, args.dataset, args.split, args.allow_unpinned)
    predictions = Predictions(args.predictions, args.benchmark, questions, revision)
    if predictions.several:
        found = f"{predictions.several:,} rows hold several outputs under {predictions.key}"
        print(f"{args.predictions}: {found}; the first of each is scored", file=sys.stderr)
    scored = score_run(args.benchmark, protocols, predictions.outputs, predictions.rows)
    if args.rows_file:
        lines = (json.dumps(line, ensure_ascii=False) for line in decision_lines(args.benchmark, protocols, predictions))
        write_atomically(Path(args.rows_file), "".join(f"{line}\n" for line in lines))
    pinned = get_benchmark(args.benchmark).pinned
    are_pinned = pinned.asks(questions)
    if args.json:
        figures = {
            "benchmark": args.benchmark,
            "split": split,
            "benchmark_revision": revision,
            "predictions": Path(args.predictions).name,
            "read_from": predictions.key,
            "several": predictions.several,
            "questions": len(questions),
            "benchmark_questions": pinned.questions,
            "benchmark_pinned": are_pinned,
            "missing": predictions.missing,
            "not_text": predictions.not_text,
            "protocols": scored,
        }
        print(json.dumps(figures, indent=2))
        return
    main_protocol = scored[PAPER if PAPER in scored else protocols[0]]
    if any(name in predictions.outputs for name in AUDIO_CONTROLS):
        print(audio_use_statement([(Path(args.predictions).name, main_protocol)]))
    missing = {
        name: f"{predictions.missing[name]} without a prediction, {predictions.not_text[name]} with an output that is not text"
        for name in predictions.outputs
    }
    asked = part_asked(len(questions), pinned.questions, are_pinned) or f"{len(questions):,} questions"
    print(f"{args.benchmark}, {split}, {revision}: {asked}, {missing[NO_CONTROL]}; outputs read from {predictions.key}")
    for name in CONTROLS:
        if name in missing:
            print(f"{CONTROLS[name]}: {missing[name]}")
    if OFFICIAL in scored and (line := skipped_line(scored[OFFICIAL]["results"][NO_CONTROL])):
        print(line)
    print("\n".join(["", *figures_table({name: part["results"][NO_CONTROL] for name, part in scored.items()})]))
    if len(predictions.outputs) > 1:
        print("\n".join(["", *controls_table(main_protocol)]))

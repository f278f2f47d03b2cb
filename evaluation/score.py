r"""
Score a file of predictions, ours or others', by the official and the paper's protocol side by side.

    python -m evaluation score --benchmark mmau --annotations mmau-test-mini.json --predictions outputs.json \
        --protocol official,paper --rows_file decisions.jsonl

`--predictions` is a run's `data/predictions-*.parquet`, or JSON: a list, one object per line, or an object of rows or outputs
by id. A row has the question's `id` and an output under `output`, `raw_model_outputs`, `resps`, `filtered_resps`,
`model_output`, `response`, `model_prediction`, `answer_prediction` or `prediction`; the first of these that the file has is
read. The question may stand under `doc`, as in the samples of lmms-eval. Of a list of outputs the first one is scored. The
questions are the official annotation file, or the dataset built from it (`--dataset`). Questions without an output count as
unanswered and are counted.

`--rows_file` gets one JSON line per question and protocol: `id`, `protocol`, `answer` (the index of the choice, from 0, or
null), `matched_by` (`none`: unanswered) and `correct`. Where the predictions hold controls, every line has `control` as well
(`none`: with the clip), and under `shuffled` the index is that of the shuffled choices. An official rule only says right or
wrong: `answer` is then the one choice that the rule would call right, or null where there is none or several.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.benchmarks import load_questions, part_asked
from evaluation.reporting.sections import gain_cell, percent, table, with_interval
from evaluation.running.controls import AUDIO_CONTROLS, CONTROLS, NO_CONTROL, audio_use_statement
from evaluation.scoring.accuracy import score_run
from evaluation.scoring.predictions import Predictions
from evaluation.scoring.protocols import PAPER, chosen_index, decide_all, protocols_of
from sightsound.benchmarks import benchmark_names, get_benchmark
from sightsound.cli import InputError, parse_arguments
from sightsound.stage import write_atomically


@dataclass
class ScoreArguments:
    predictions: str = field(metadata={"help": "the outputs: .parquet, .json or .jsonl"})
    benchmark: str = field(metadata={"help": f"one of {', '.join(benchmark_names())}"})
    annotations: str | None = field(default=None, metadata={"help": "its official annotation file"})
    dataset: str | None = field(default=None, metadata={"help": "or the dataset built from it, folder or Hub id"})
    split: str | None = field(default=None, metadata={"help": "split of --dataset (default: the benchmark's)"})
    protocol: str | None = field(default=None, metadata={"help": "official, paper, or both with a comma (default: all)"})
    allow_unpinned: bool = field(default=False, metadata={"help": "score against another annotation file than the pinned one"})
    json: bool = field(default=False, metadata={"help": "print every figure as JSON instead of tables"})
    rows_file: str | None = field(default=None, metadata={"help": "write the decision on every row there, as JSON lines"})


def protocols_in(args: ScoreArguments) -> list[str]:
    """What was asked for, in that order."""
    known = protocols_of(args.benchmark)
    asked = known if args.protocol is None else list(dict.fromkeys(name.strip() for name in args.protocol.split(",")))
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"--protocol: {args.benchmark} has no protocol '{unknown[0]}'; expected {', '.join(known)}")
    return asked


def check_rows_file(args: ScoreArguments) -> None:
    """
    Refuse, before anything is scored, a place where the decisions cannot be written.

    Raises:
        `InputError`: It is a folder, in a folder that does not exist, or one of the inputs.
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


def decisions_on(benchmark: str, protocols: list[str], given: Predictions) -> Iterator[dict[str, Any]]:
    """The decision on every row: by control, then by question, then by protocol."""
    for control, outputs in given.outputs.items():
        rows = given.rows[control]
        decided = decide_all(benchmark, protocols, outputs, rows)
        for i, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            for protocol in protocols:
                decision = decided[protocol][i]
                yield {
                    "id": row["id"],
                    **({"control": control} if len(given.outputs) > 1 else {}),
                    "protocol": protocol,
                    "answer": chosen_index(benchmark, protocol, decision, output, row),
                    "matched_by": decision.matched_by,
                    "correct": decision.correct,
                }


def figures_table(by_protocol: dict[str, dict[str, Any]]) -> list[str]:
    """A row per group of questions, a column per protocol."""
    first = next(iter(by_protocol.values()))
    rows: list[list[Any]] = []

    def add(name: str, parts: list[dict[str, Any]]) -> None:
        rows.append([name, parts[0]["n"], *map(with_interval, parts)])

    def add_answered(name: str, parts: list[dict[str, Any]]) -> None:
        over = [part["over_answered"] for part in parts]
        cells = ["–" if figures is None else f"{with_interval(figures)} (n={figures['n']})" for figures in over]
        rows.append([f"{name}, over the answered", "–", *cells])

    parts = list(by_protocol.values())
    add("average", parts)
    add_answered("average", parts)
    if "all" in first:
        add("all questions", [figures["all"] for figures in parts])
        add_answered("all questions", [figures["all"] for figures in parts])
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
    check_rows_file(args)
    questions, revision, split = load_questions(args.benchmark, args.annotations, args.dataset, args.split, args.allow_unpinned)
    given = Predictions(args.predictions, args.benchmark, questions, revision)
    if given.several:
        told = f"{given.several:,} rows hold several outputs under {given.key}"
        print(f"{args.predictions}: {told}; the first of each is scored", file=sys.stderr)
    scored = score_run(args.benchmark, protocols, given.outputs, given.rows)
    if args.rows_file:
        lines = (json.dumps(line, ensure_ascii=False) for line in decisions_on(args.benchmark, protocols, given))
        write_atomically(Path(args.rows_file), "".join(f"{line}\n" for line in lines))
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
        told = {"benchmark": args.benchmark, "split": split, "benchmark_revision": revision}
        read = {"predictions": Path(args.predictions).name, "read_from": given.key, "several": given.several}
        print(json.dumps({**told, **read, **counts, "protocols": scored}, indent=2))
        return
    main_protocol = scored[PAPER if PAPER in scored else protocols[0]]
    if any(name in given.outputs for name in AUDIO_CONTROLS):
        print(audio_use_statement([(Path(args.predictions).name, main_protocol)]))
    told = "{} without a prediction, {} with an output that is no text"
    lost = {name: told.format(given.missing[name], given.not_text[name]) for name in given.outputs}
    asked = part_asked(len(questions), pinned.questions, are_pinned) or f"{len(questions):,} questions"
    print(f"{args.benchmark}, {split}, {revision}: {asked}, {lost[NO_CONTROL]}; outputs read from {given.key}")
    for name in CONTROLS:
        if name in lost:
            print(f"{CONTROLS[name]}: {lost[name]}")
    print("\n".join(["", *figures_table({name: part["results"][NO_CONTROL] for name, part in scored.items()})]))
    if len(given.outputs) > 1:
        print("\n".join(["", *controls_table(main_protocol)]))

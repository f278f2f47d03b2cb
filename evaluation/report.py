r"""
Gather finished runs into a report: tables on the terminal, `report.md`, `report.json`, figures, a page of traces and answers.

    python -m evaluation report --runs outputs/miniature/seed-*/evaluation/* --training outputs/miniature/seed-*/sft-* \
        --output_dir outputs/miniature
    python -m evaluation report --table table2 --runs evaluation-runs/*

The first line says whether each model uses the audio. "DEAF" means that a model is no more accurate with the clip than with
silence or with another clip: the 95 % interval of the gain includes zero. "ANSWERS NOTHING" means that no output contains an
answer. Every table names its split, and runs on questions that their model was trained on are marked. Every accuracy has its
95 % Wilson interval; unanswered questions count as not correct and also have a column of their own.

`--dataset` adds `browser/index.html`: the questions of that dataset with the answers of the first and the last run on it
(`python -m evaluation browse` makes such a page for any runs). `--table` prints a table of the paper with our runs beside its
figures instead of a report, and also writes it when `--output_dir` is given.
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation import browse as browser
from evaluation.reporting.figures import plot_accuracy, plot_curves, plot_table, read_logs
from evaluation.reporting.finished_runs import FinishedRun, answers_of, find_runs, is_given_audio, run_names, split_of
from evaluation.reporting.paper_tables import TABLES, conflicts, load_table, row_of, table_lines
from evaluation.reporting.sections import (
    breakdown_note,
    breakdown_table,
    breakdown_titles,
    comparisons_lines,
    controls_table,
    coverage_lines,
    main_table,
    missing_answers_table,
    num_asked,
    protocols_table,
    run_label,
    skipped_line,
)
from evaluation.running.controls import AUDIO_CONTROLS, NO_CONTROL
from evaluation.scoring.accuracy import ANSWERED
from evaluation.scoring.audio_use import audio_use_statement
from evaluation.scoring.protocols import OFFICIAL
from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.sources import split_revision
from sightsound.stage import fingerprint, write_atomically


PAGE = "browser"


@dataclass
class ReportArguments:
    runs: list[str] | None = field(default=None, metadata={"help": "folders written by `python -m evaluation run`"})
    output_dir: str | None = field(default=None, metadata={"help": "where to write the report"})
    training: list[str] | None = field(default=None, metadata={"help": "folders of training runs, for the curves"})
    table: str | None = field(default=None, metadata={"help": "print this table of the paper instead", "choices": list(TABLES)})
    dataset: str | None = field(default=None, metadata={"help": "dataset of the questions, for the page: folder or Hub id"})
    corpus: str | None = field(default=None, metadata={"help": "corpus of traces, for the page: folder or Hub id"})
    corpus_split: str = field(default="train", metadata={"help": "split of the dataset that the corpus is about"})
    media_dir: str | None = field(default=None, metadata={"help": "folder with the videos, for the page"})


def to_entry(results: dict[str, Any]) -> dict[str, Any]:
    """One entry of `report.json`: accuracies in percent, None for a control without answers."""
    controls, outcomes = results["results"], results.get("outcomes", {})
    answered = [name for name in controls if outcomes.get(name, {ANSWERED: 1}).get(ANSWERED)]
    return {
        "arm": results["arm"],
        "seed": results["seed"],
        **{name: controls[NO_CONTROL][name] for name in ("n", "accuracy", "low", "high", "unanswered")},
        **{f"{name}_accuracy": controls[name]["accuracy"] if name in answered else None for name in AUDIO_CONTROLS},
        "split": split_of(results),
        "trained_on": results.get("trained_on"),
    }


def by_benchmark(runs: list[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs of each benchmark, in the order given."""
    found: dict[str, list[FinishedRun]] = {}
    for each in runs:
        found.setdefault(each.results["benchmark"], []).append(each)
    return found


def with_unique_names(runs: list[FinishedRun]) -> list[FinishedRun]:
    """
    The runs under names that are unique per benchmark and seed.

    A name gets the split where runs of one benchmark are on several splits, `--limit` where that cut the split, and the folder
    where several runs still share a name.
    """
    splits = {name: {split_of(run.results) for run in part} for name, part in by_benchmark(runs).items()}
    named, folders_of = [], defaultdict(list)
    for folder, results in runs:
        on_split = f" on {split_of(results)}" if len(splits[results["benchmark"]]) > 1 else ""
        limit = results["settings"].get("limit")
        cut = f" with --limit {limit}" if limit is not None and num_asked(results) >= limit else ""
        named.append(FinishedRun(folder, results | {"arm": f"{results['arm']}{on_split}{cut}"}))
        folders_of[_identity(named[-1])].append(folder)
    unique = []
    for each in named:
        folders = folders_of[_identity(each)]
        if len(folders) > 1:
            folder = dict(zip(folders, run_names(folders), strict=True))[each.folder]
            each = FinishedRun(each.folder, each.results | {"arm": f"{each.results['arm']} in {folder}"})
        unique.append(each)
    return unique


def _identity(run: FinishedRun) -> tuple[str, str, int]:
    """What identifies a run in a report."""
    return run.results["benchmark"], run.results["arm"], run.results["seed"]


def title_of(benchmark: str, runs: list[FinishedRun]) -> str:
    """A benchmark with the split, or splits, of the figures below."""
    splits = list(dict.fromkeys(split_of(run.results) for run in runs))
    return f"{benchmark}, split{'s' if len(splits) > 1 else ''} {', '.join(splits)}"


def benchmark_lines(benchmark: str, runs: list[FinishedRun]) -> list[str]:
    """The section of one benchmark."""
    all_results = [results for _, results in runs]
    lines = [f"## {title_of(benchmark, runs)}", "", *main_table([to_entry(results) for results in all_results]), ""]
    lines += coverage_lines(all_results)
    lines += ["### Protocols and errors", "", *protocols_table(all_results), ""]
    skipped = [(run_label(run), skipped_line(run[OFFICIAL][NO_CONTROL])) for run in all_results if OFFICIAL in run]
    lines += [part for name, line in skipped if line for part in (f"{name}, {line}.", "")]
    if missing := missing_answers_table(all_results):
        lines += ["### Missing outputs and cut clips", "", *missing, ""]
    if controlled := [results for results in all_results if results["gains"]]:
        note = "Percent points, with 95 % intervals over clips, over the questions that got an output both ways."
        lines += ["### Controls", "", note, "", *controls_table(controlled), ""]
    for group, title in breakdown_titles(benchmark).items():
        if broken_down := [results for results in all_results if group in results["results"][NO_CONTROL]]:
            note = breakdown_note(benchmark, broken_down, group)
            lines += [f"### {title}", "", *([note, ""] if note else []), *breakdown_table(broken_down, group), ""]
    if compared := comparisons_lines(runs):
        note = "Percent points by the paper's protocol, with 95 % intervals by bootstrap over clips; McNemar's exact test."
        lines += ["### Runs compared in pairs", "", note, "", *compared, ""]
    return lines


def training_lines(folders: list[str], output: Path) -> list[str]:
    """Write the curves of training runs; return the report's section about them."""
    logs = read_logs(folders)
    sft = {name: log for name, log in logs.items() if not any("reward" in entry for entry in log)}
    grpo = {name: log for name, log in logs.items() if name not in sft}
    lines = ["## Training", ""] if logs else []
    if sft:
        plot_curves(sft, {"loss": "loss"}, "SFT", output / "sft_loss.png")
        lines += ["![SFT loss](sft_loss.png)", ""]
    if grpo:
        metrics = {"reward": "mean reward (0 to 2)", "kl": "KL to the SFT model, nats per token"}
        plot_curves(grpo, metrics, "GRPO", output / "grpo.png")
        lines += ["![GRPO reward and KL](grpo.png)", ""]
    return lines


def page_arguments(
    args: ReportArguments, runs: list[FinishedRun], output: Path, dataset: str
) -> tuple[browser.BrowseArguments, str]:
    """
    Arguments of the page, and the report's note about it.

    The page shows the first and the last of the runs on the dataset, or only the last where the two have different questions.

    Raises:
        `InputError`: No run is about that dataset.
    """
    wanted = fingerprint(split_revision(dataset)[0])
    on_dataset = [each for each in runs if split_revision(each.results["settings"]["dataset"])[0] == wanted]
    if not on_dataset:
        raise InputError(f"none of the runs was asked the questions of {dataset}; give the dataset that they were asked")
    first = on_dataset[0]
    benchmark, split = first.results["benchmark"], split_of(first.results)
    last = [run for run in on_dataset if (run.results["benchmark"], split_of(run.results)) == (benchmark, split)][-1]
    shown, note = [first, last] if last is not first else [first], ""
    if answers_of(first).keys() != answers_of(last).keys():
        shown = [last]
        note = f" of {run_label(last.results)} alone: {run_label(first.results)} was asked other questions"
    page = browser.BrowseArguments(
        dataset=dataset,
        output_dir=str(output / PAGE),
        corpus=args.corpus,
        split=args.corpus_split,
        runs=[run.folder for run in shown],
        runs_split=split,
        benchmark=benchmark,
        media_dir=args.media_dir,
    )
    return page, note


def write_tables(names: list[str], runs: list[FinishedRun], output: Path | None) -> dict[str, list[str]]:
    """Tables of the paper with the runs beside them, as Markdown lines; written as files too when there is a folder."""
    texts = {}
    for name in names:
        table = load_table(name)
        texts[name] = table_lines(table, runs)
        if output:
            write_atomically(output / f"{name}.md", "\n".join(texts[name]) + "\n")
            plot_table(table, [results for _, results in runs], output / f"{name}.png")
    return texts


def write_report(args: ReportArguments, runs: list[FinishedRun], output: Path) -> None:
    """Write the report to `output` and print its main tables."""
    page_note = ""
    if args.dataset:  # before anything is written: it raises where dataset, corpus and runs do not belong together
        page, page_note = page_arguments(args, runs, output, args.dataset)
        browser.write_page(page)
    runs_of = by_benchmark(runs)
    several = len(runs_of) > 1
    entries = {benchmark: [to_entry(results) for _, results in part] for benchmark, part in runs_of.items()}
    titles = {benchmark: title_of(benchmark, part) for benchmark, part in runs_of.items()}
    flat = [{**({"benchmark": name} if several else {}), **entry} for name, part in entries.items() for entry in part]
    write_atomically(output / "report.json", json.dumps(flat, indent=2) + "\n")
    plot_accuracy({titles[benchmark]: part for benchmark, part in entries.items()}, output / "accuracy.png")
    statement = audio_use_statement(
        [
            (run_label(results) + (f" on {results['benchmark']}" if several else ""), results)
            for _, results in runs
            if is_given_audio(results)
        ]
    )
    lines = [statement, "", "# Report", ""]
    if args.dataset:
        lines += [f"[Traces and answers, question by question]({PAGE}/index.html){page_note}", ""]
    lines += ["![accuracy by arm](accuracy.png)", ""]
    for benchmark, part in runs_of.items():
        lines += benchmark_lines(benchmark, part)
    filled = [name for name in TABLES if any(row_of(load_table(name), results) for _, results in runs)]
    for name, text in write_tables(filled, runs, output).items():
        lines += [f"## The paper's {name.replace('table', 'Table ')}", "", *text, "", f"![{name}]({name}.png)", ""]
    lines += training_lines(args.training or [], output)
    write_atomically(output / "report.md", "\n".join(lines))
    print(statement)
    for benchmark, part in runs_of.items():
        table = [*main_table(entries[benchmark]), "", *coverage_lines([results for _, results in part])]
        print("\n".join(["", titles[benchmark], "", *table]).rstrip())
    print(f"report: {output / 'report.md'}")


def main(argv: list[str]) -> None:
    args = parse_arguments(ReportArguments, __doc__, argv)
    runs = with_unique_names(find_runs(args.runs or []))
    if args.table is None and not (args.runs and args.output_dir):
        raise InputError("a report needs --runs and --output_dir; or give --table, to see a table of the paper")
    if args.table is not None and (problems := conflicts(load_table(args.table), runs)):
        raise InputError(" ".join(problems))
    output = Path(args.output_dir) if args.output_dir else None
    if output:
        output.mkdir(parents=True, exist_ok=True)
    if args.table is not None:
        print("\n".join(write_tables([args.table], runs, output)[args.table]))
    elif output:
        write_report(args, runs, output)


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

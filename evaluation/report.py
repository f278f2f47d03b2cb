r"""
Gather finished runs into a report: tables on the terminal, `report.md`, `report.json`, figures, a page of traces and answers.

    python -m evaluation report --runs outputs/miniature/seed-*/evaluation/* --training outputs/miniature/seed-*/sft-* \
        --output_dir outputs/miniature
    python -m evaluation report --table table2 --runs evaluation-runs/*

The first line says whether a model is deaf, or answers nothing. Every table names its split, and runs on questions that their
model was trained on are marked. Every accuracy comes with its 95 % Wilson interval; unanswered questions count as
not correct and have a column of their own. With `--dataset`, `browser/index.html` shows its questions with what the first and
the last of the runs on it answered (`python -m evaluation browse` makes any other page). `--table` prints a table of the paper
with our runs beside its figures, and writes it where `--output_dir` is given.
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation import browse as browser
from evaluation.reporting.figures import plot_accuracy, plot_curves, plot_table, read_logs
from evaluation.reporting.finished_runs import FinishedRun, answers_of, find_runs, hears, run_names, split_of
from evaluation.reporting.paper_tables import TABLES, conflicts, load_table, row_of, table_lines
from evaluation.reporting.sections import (
    breakdown_note,
    breakdown_table,
    breakdown_titles,
    comparisons_lines,
    controls_table,
    losses_table,
    main_table,
    name_of,
    num_asked,
    parts_lines,
    protocols_table,
)
from evaluation.running.controls import AUDIO_CONTROLS, NO_CONTROL, audio_use_statement
from evaluation.scoring.accuracy import ANSWERED
from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.sources import split_revision
from sightsound.stage import fingerprint, write_atomically


PAGE = "browser"


@dataclass
class ReportArguments:
    runs: list[str] | None = field(default=None, metadata={"help": "folders written by `python -m evaluation run`"})
    output_dir: str | None = field(default=None, metadata={"help": "where to write the report"})
    training: list[str] | None = field(default=None, metadata={"help": "folders of training runs, for the curves"})
    table: str | None = field(default=None, metadata={"help": "a table of the paper instead", "choices": list(TABLES)})
    dataset: str | None = field(default=None, metadata={"help": "what runs were asked, for the page: folder or Hub id"})
    corpus: str | None = field(default=None, metadata={"help": "traces for the page, by cot_corpus.py: folder or Hub id"})
    corpus_split: str = field(default="train", metadata={"help": "split of the dataset that the corpus is about"})
    media_dir: str | None = field(default=None, metadata={"help": "folder with the videos, for the page"})


def to_entry(results: dict[str, Any]) -> dict[str, Any]:
    """One run's results -> one entry of `report.json`; accuracies in percent, None for a control without answers."""
    scored, controls = results["results"][NO_CONTROL], results["results"]
    outcomes = results.get("outcomes", {})
    answered = [name for name in controls if outcomes.get(name, {ANSWERED: 1}).get(ANSWERED)]
    return {
        "arm": results["arm"],
        "seed": results["seed"],
        **{name: scored[name] for name in ("n", "accuracy", "low", "high", "unanswered")},
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


def told_apart(runs: list[FinishedRun]) -> list[FinishedRun]:
    """
    Runs by names that tell them apart: with the split where runs of one benchmark are on several, with `--limit` where that cut
    the split, and with the folder where there are still several of one name.
    """
    splits = {name: {split_of(run.results) for run in part} for name, part in by_benchmark(runs).items()}
    marked, alike = [], defaultdict(list)
    for folder, results in runs:
        on_split = f" on {split_of(results)}" if len(splits[results["benchmark"]]) > 1 else ""
        limit = results["settings"].get("limit")
        cut = f" with --limit {limit}" if limit is not None and num_asked(results) >= limit else ""
        marked.append(FinishedRun(folder, results | {"arm": f"{results['arm']}{on_split}{cut}"}))
        alike[_place_of(marked[-1])].append(folder)
    folders = {place: dict(zip(part, run_names(part), strict=True)) for place, part in alike.items() if len(part) > 1}
    return [
        FinishedRun(run.folder, run.results | {"arm": f"{run.results['arm']} in {folders[_place_of(run)][run.folder]}"})
        if _place_of(run) in folders
        else run
        for run in marked
    ]


def _place_of(run: FinishedRun) -> tuple[str, str, int]:
    """What a report knows a run by."""
    return run.results["benchmark"], run.results["arm"], run.results["seed"]


def title_of(benchmark: str, runs: list[FinishedRun]) -> str:
    """A benchmark and the split, or splits, that figures below are about."""
    splits = list(dict.fromkeys(split_of(run.results) for run in runs))
    return f"{benchmark}, split{'s' if len(splits) > 1 else ''} {', '.join(splits)}"


def benchmark_lines(benchmark: str, runs: list[FinishedRun]) -> list[str]:
    """All that the report says of one benchmark."""
    all_results = [results for _, results in runs]
    lines = [f"## {title_of(benchmark, runs)}", "", *main_table([to_entry(results) for results in all_results]), ""]
    lines += parts_lines(all_results)
    lines += ["### Protocols and errors", "", *protocols_table(all_results), ""]
    if lost := losses_table(all_results):
        lines += ["### Questions to which no text came back, and clips heard in part", "", *lost, ""]
    if controlled := [results for results in all_results if results["gains"]]:
        note = "Percent points, with 95 % intervals over clips, over the questions to which a text came back both ways."
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
    """The curves of training runs: writes the figures, returns what the report says of them."""
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
    What the page is made of, and what the report says of that: the first and the last of the runs on the dataset, or the last
    alone where they were asked different questions.

    Raises:
        `InputError`: No run is about that dataset.
    """
    about = fingerprint(split_revision(dataset)[0])
    asked = [each for each in runs if split_revision(each.results["settings"]["dataset"])[0] == about]
    if not asked:
        raise InputError(f"none of the runs was asked the questions of {dataset}; give the dataset that they were asked")
    first = asked[0]
    benchmark, split = first.results["benchmark"], split_of(first.results)
    last = [run for run in asked if (run.results["benchmark"], split_of(run.results)) == (benchmark, split)][-1]
    shown, note = [first, last] if last is not first else [first], ""
    if answers_of(first).keys() != answers_of(last).keys():
        shown = [last]
        note = f" of {name_of(last.results)} alone: {name_of(first.results)} was asked other questions"
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
    """Tables of the paper with the runs beside them, as Markdown lines; as files too, where there is a folder for them."""
    texts = {}
    for name in names:
        table, results = load_table(name), [results for _, results in runs]
        texts[name] = table_lines(table, runs)
        if output:
            write_atomically(output / f"{name}.md", "\n".join(texts[name]) + "\n")
            plot_table(table, results, output / f"{name}.png")
    return texts


def write_report(args: ReportArguments, runs: list[FinishedRun], output: Path) -> None:
    """Everything that goes to `output`, and the main tables to the terminal."""
    page_note = ""
    if args.dataset:  # first of all: it refuses what does not belong together
        page, page_note = page_arguments(args, runs, output, args.dataset)
        browser.write_page(page)
    entries = {benchmark: [to_entry(results) for _, results in part] for benchmark, part in by_benchmark(runs).items()}
    several = len(entries) > 1
    named = [{**({"benchmark": name} if several else {}), **entry} for name, part in entries.items() for entry in part]
    write_atomically(output / "report.json", json.dumps(named, indent=2) + "\n")
    titles = {benchmark: title_of(benchmark, part) for benchmark, part in by_benchmark(runs).items()}
    plot_accuracy({titles[benchmark]: part for benchmark, part in entries.items()}, output / "accuracy.png")
    names = [name_of(results) + (f" on {results['benchmark']}" if several else "") for _, results in runs]
    told = audio_use_statement([(name, results) for name, (_, results) in zip(names, runs, strict=True) if hears(results)])
    lines = [told, "", "# Report", ""]
    if args.dataset:
        lines += [f"[Traces and answers, question by question]({PAGE}/index.html){page_note}", ""]
    lines += ["![accuracy by arm](accuracy.png)", ""]
    for benchmark, part in by_benchmark(runs).items():
        lines += benchmark_lines(benchmark, part)
    ours = [name for name in TABLES if any(row_of(load_table(name), results) for _, results in runs)]
    for name, text in write_tables(ours, runs, output).items():
        lines += [f"## The paper's {name.replace('table', 'Table ')}", "", *text, "", f"![{name}]({name}.png)", ""]
    lines += training_lines(args.training or [], output)
    write_atomically(output / "report.md", "\n".join(lines))
    print(told)
    for benchmark, part in by_benchmark(runs).items():
        all_results = [results for _, results in part]
        shown = [*main_table(entries[benchmark]), "", *parts_lines(all_results)]
        print("\n".join(["", titles[benchmark], "", *shown]).rstrip())
    print(f"report: {output / 'report.md'}")


def main(argv: list[str]) -> None:
    args = parse_arguments(ReportArguments, __doc__, argv)
    runs = told_apart(find_runs(args.runs or []))
    if args.table is None and not (args.runs and args.output_dir):
        raise InputError("a report needs --runs and --output_dir; or give --table, to see a table of the paper")
    output = Path(args.output_dir) if args.output_dir else None
    if output:
        output.mkdir(parents=True, exist_ok=True)
    if args.table is None:
        write_report(args, runs, output)
    elif told := conflicts(load_table(args.table), runs):
        raise InputError(" ".join(told))
    else:
        print("\n".join(write_tables([args.table], runs, output)[args.table]))


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))

"""The tables and sentences of a report, as Markdown lines. `publish` takes its figures from here too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.benchmarks import part_asked
from evaluation.reporting.finished_runs import FinishedRun, answers_of, split_of
from evaluation.running.controls import CONTROLS, NO_CONTROL
from evaluation.scoring.accuracy import ANSWERED
from evaluation.scoring.audio_use import answers_nothing, compared_part
from evaluation.scoring.paired_runs import compare_runs
from evaluation.scoring.protocols import OFFICIAL, PAPER
from evaluation.scoring.statistics import Comparison
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError
from sightsound.hub.cards import markdown_table


Results = dict[str, Any]

BY_POSITION = "by_position"
POSITION_NOTE = "Even figures mean that the model does not favour a letter."
MAX_COLUMNS = 8  # a breakdown with more groups is printed with a row per group: MMAU has 27 sub-categories


def run_label(results: Results) -> str:
    return f"{results['arm']} (seed {results['seed']})"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def with_interval(figures: dict[str, Any], name: str = "accuracy") -> str:
    return f"{figures[name]:.1f} [{figures['low']:.1f}, {figures['high']:.1f}]"


def by_protocol(run: Results) -> dict[str, dict[str, Any]]:
    """A run's figures with the clip, per protocol."""
    official = {OFFICIAL: run["official"][NO_CONTROL]} if "official" in run else {}
    return {PAPER: run["results"][NO_CONTROL], **official}


def num_asked(run: Results) -> int:
    """Number of questions of a run, including those that the average leaves out."""
    scored = run["results"][NO_CONTROL]
    return int(scored.get("all", scored)["n"])


def coverage_note(run: Results) -> str | None:
    """`"20 of 1,000 questions"` of a run on a part of its benchmark; None for all of it, and where that is not recorded."""
    return part_asked(num_asked(run), run.get("benchmark_questions"), run.get("benchmark_pinned"))


def overlap_note(run: Results) -> str | None:
    """How many of a run's questions the model was trained on; None for no question, and where that is not known."""
    count = run.get("trained_on")
    return f"{count:,} of these {num_asked(run):,} questions" if count else None


def coverage_lines(runs: Sequence[Results]) -> list[str]:
    """Names the runs on a part of their benchmark, on other questions, or on questions that the model was trained on."""
    lines = []
    if partial := [f"{run_label(run)}: {note}" for run in runs if (note := coverage_note(run))]:
        lines.append(f"Not the whole benchmark as it is pinned: {'; '.join(partial)}.")
    return [part for line in [*lines, *overlap_lines(runs)] for part in (line, "")]


def overlap_lines(runs: Sequence[Results]) -> list[str]:
    """Names the runs on questions that their model was trained on."""
    trained = [f"{run_label(run)}, {note}" for run in runs if (note := overlap_note(run))]
    note = "These figures do not show how accurate it is on other questions"
    return [f"TRAINED ON the questions of this test: {'; '.join(trained)}. {note}."] if trained else []


def summary_line(run: Results) -> str:
    """The line that a run prints when it ends."""
    figures, coverage = run["results"][NO_CONTROL], coverage_note(run)
    asked = f"{figures['n']}{f' (asked: {coverage})' if coverage else ''}"
    parts = [f"{run['arm']}, {run['benchmark']}, split {split_of(run)}: {with_interval(figures)} on {asked}"]
    if answers_nothing(run):
        parts.append("no output contains an answer")
    if overlap := overlap_note(run):
        parts.append(f"TRAINED ON {overlap}")
    for control, outcomes in run["outcomes"].items():
        failed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if outcome != ANSWERED)
        if failed:
            parts.append(f"{'' if control == NO_CONTROL else f'{control}: '}not asked or not answered: {failed}")
    return "; ".join(parts)


def skipped_line(figures: dict[str, Any]) -> str:
    """What an official script gives that skips questions without a prediction; empty where there are none."""
    over = figures.get("over_predicted")
    if over is None or not over["skipped"]:
        return ""
    counted = f"{over['skipped']:,} of {figures['n']:,} questions have no prediction"
    script = f"its script skips them and gives {with_interval(over)} over {over['n']:,}"
    return f"official rule: {counted}; {script}; counted as wrong, as here, it is {with_interval(figures)}"


def main_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """One row per run, from the entries of `report.json`."""
    head = ["arm", "seed", "questions", "accuracy [95 % interval]", "unanswered", "silent audio", "another clip's audio"]
    shown = ("unanswered", "silent_accuracy", "swapped_accuracy")
    rows = [[e["arm"], e["seed"], e["n"], with_interval(e), *(percent(e[name]) for name in shown)] for e in entries]
    return markdown_table(head, rows)


def protocols_table(runs: Sequence[Results]) -> list[str]:
    """The protocols side by side, each over the questions of the average and, where some are left out, over all."""
    head = ["arm", "seed", "questions", "protocol", "accuracy [95 % interval]", "error clustered by clip", "unanswered"]
    rows = []
    for run in runs:
        for protocol, scored in by_protocol(run).items():
            for name, part in {"average": scored, **({"all": scored["all"]} if "all" in scored else {})}.items():
                cells = [with_interval(part), percent(part["error"]), percent(part["unanswered"])]
                rows.append([run["arm"], run["seed"], f"{name}, {part['n']:,}", protocol, *cells])
    return markdown_table(head, rows)


def missing_answers(run: Results) -> list[tuple[str, int, str, int]]:
    """
    The conditions of a run in which outputs are missing or clips were cut.

    Returns:
        `list`: Per condition its name, the number of outputs, the reasons for missing ones, and the number of clips that were
        cut to the model's window (counted once, with the clip itself).
    """
    rows = []
    for control, outcomes in run.get("outcomes", {}).items():
        reasons = [f"{count} {outcome}" for outcome, count in sorted(outcomes.items()) if outcome != ANSWERED]
        num_cut = run.get("clips_cut", 0) if control == NO_CONTROL else 0
        if reasons or num_cut:
            rows.append((CONTROLS.get(control, "the clip"), outcomes.get(ANSWERED, 0), ", ".join(reasons) or "–", num_cut))
    return rows


def missing_answers_table(runs: Sequence[Results]) -> list[str]:
    """Missing outputs and cut clips of all runs; no lines where there are none."""
    head = ["arm", "seed", "condition", "outputs", "no output, and why", "clips cut to the model's window"]
    rows = [[run["arm"], run["seed"], *cells] for run in runs for cells in missing_answers(run)]
    return markdown_table(head, rows) if rows else []


def controls_table(runs: Sequence[Results]) -> list[str]:
    """What each run gains over its controls, and how often it chooses the same text when choices are shuffled."""
    head = ["arm", "seed", *(f"gain over {name}" for name in CONTROLS.values()), "same choice when shuffled"]
    rows = []
    for run in runs:
        same = "–"
        if "consistency" in run:
            same = with_interval(run["consistency"], "same_choice") + _pairs_note(run, run["consistency"]["n"])
        rows.append([run["arm"], run["seed"], *(gain_cell(run, name) for name in CONTROLS), same])
    return markdown_table(head, rows)


def gain_cell(scored: dict[str, Any], control: str) -> str:
    """The gain over a control; with the number of questions where not all got an output both ways."""
    if control not in scored["gains"]:
        return "–"
    gain = Comparison(**scored["gains"][control])
    return f"{gain}{_pairs_note(scored, gain.n)}"


def _pairs_note(scored: dict[str, Any], n: int) -> str:
    return f" (n={n:,})" if compared_part(scored, n) else ""


def breakdown_titles(benchmark: str) -> dict[str, str]:
    """Titles of a benchmark's breakdowns, by their key in the results; every benchmark has one by position."""
    titles = {name: breakdown.title for name, breakdown in get_benchmark(benchmark).breakdowns.items()}
    return titles | {BY_POSITION: "By position of the right choice"}


def breakdown_note(benchmark: str, runs: Sequence[Results], group: str) -> str:
    """The sentence below a breakdown's title; empty if there is none."""
    if group == BY_POSITION:
        return POSITION_NOTE
    names = {name for run in runs for name in run["results"][NO_CONTROL][group]}
    return get_benchmark(benchmark).breakdowns[group].note(names)


def breakdown_table(runs: Sequence[Results], group: str) -> list[str]:
    """Accuracy per group of questions under every protocol; by type with the average, as in the paper's Table 2."""
    several = any(OFFICIAL in by_protocol(run) for run in runs)
    labelled = []
    for run in runs:
        for protocol, scored in by_protocol(run).items():
            parts = dict(scored[group])
            if group == "by_type":
                parts |= {"average": scored, **({"all": scored["all"]} if "all" in scored else {})}
            labelled.append(([run["arm"], run["seed"], *([protocol] if several else [])], parts))
    order = {"average": 1, "all": 2}
    names = sorted({name for _, parts in labelled for name in parts}, key=lambda name: (order.get(name, 0), name))
    head = ["arm", "seed", *(["protocol"] if several else []), *(name or "not given" for name in names)]
    rows = []
    for label, parts in labelled:
        cells = [f"{with_interval(parts[name])} (n={parts[name]['n']})" if name in parts else "–" for name in names]
        rows.append([*label, *cells])
    if len(names) > MAX_COLUMNS:
        num_labels = len(head) - len(names)
        columns = list(zip(head, *rows, strict=True))[num_labels:]
        head = ["questions", *(", ".join(map(str, row[:num_labels])) for row in rows)]
        rows = [list(column) for column in columns]
    return markdown_table(head, rows)


def pairs_of(runs: Sequence[FinishedRun]) -> Iterator[tuple[FinishedRun, FinishedRun]]:
    """Runs of one seed to compare: each with the one before it and with the first, in the order given."""
    by_seed: dict[int, list[FinishedRun]] = {}
    for run in runs:
        by_seed.setdefault(run.results["seed"], []).append(run)
    for of_seed in by_seed.values():
        for i, run in enumerate(of_seed[1:], start=1):
            yield run, of_seed[i - 1]
            if i > 1:
                yield run, of_seed[0]


def comparisons_lines(runs: Sequence[FinishedRun]) -> list[str]:
    """Runs on one benchmark compared question by question; pairs that cannot be compared are named with the reason."""
    answers: dict[str, Any] = {}
    rows, refused = [], []
    for first, second in pairs_of(runs):
        try:
            for run in (first, second):
                if run.folder not in answers:
                    answers[run.folder] = answers_of(run)
            c = compare_runs(answers[first.folder], answers[second.folder], first.results["benchmark"])
        except InputError as error:  # runs on different questions may share a report; only their comparison makes no sense
            end = "" if str(error).endswith("?") else "."
            refused.append(f"Not compared: {run_label(first.results)} with {run_label(second.results)}: {error}{end}")
            continue
        names = [first.results["arm"], second.results["arm"], first.results["seed"]]
        rows.append([*names, c, c.only_first, c.only_second, f"{c.p_value:.2g}"])
    head = ["run", "less", "seed", "difference [95 % interval]", "only the run right", "only the other right", "McNemar p"]
    return [*(markdown_table(head, rows) if rows else []), *(["", *refused] if refused else [])]

"""The tables of a report, as Markdown lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.benchmarks import part_asked
from evaluation.compare import compare_runs
from evaluation.reporting.finished_runs import FinishedRun, answers_of, split_of
from evaluation.running.controls import CONTROLS, NO_CONTROL, answers_nothing, part_of_pairs
from evaluation.scoring.accuracy import ANSWERED
from evaluation.scoring.protocols import OFFICIAL, PAPER
from evaluation.scoring.statistics import Comparison
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError


Results = dict[str, Any]

BY_POSITION = "by_position"
POSITION_NOTE = "Even figures mean that the model does not favour a letter."
# MMAU has 27 sub-categories: they go down the page where there are more of them than fit across.
MAX_ACROSS = 8


def name_of(results: Results) -> str:
    return f"{results['arm']} (seed {results['seed']})"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def with_interval(figures: dict[str, Any], name: str = "accuracy") -> str:
    return f"{figures[name]:.1f} [{figures['low']:.1f}, {figures['high']:.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def by_protocol(run: Results) -> dict[str, dict[str, Any]]:
    """A run's figures with the clip, per protocol."""
    official = {OFFICIAL: run["official"][NO_CONTROL]} if "official" in run else {}
    return {PAPER: run["results"][NO_CONTROL], **official}


def num_asked(run: Results) -> int:
    """How many questions a run was asked, also those that the average leaves out."""
    scored = run["results"][NO_CONTROL]
    return int(scored.get("all", scored)["n"])


def part_of(run: Results) -> str | None:
    """`part_asked` of a run; None too where an older version wrote it, which did not know."""
    return part_asked(num_asked(run), run.get("benchmark_questions"), run.get("benchmark_pinned"))


def trained_on_told(run: Results) -> str | None:
    """How many of a run's questions the model was trained on; None for none, and where that is not known."""
    count = run.get("trained_on")
    return f"{count:,} of these {num_asked(run):,} questions" if count else None


def parts_lines(runs: Sequence[Results]) -> list[str]:
    """Which runs are about a part of their benchmark, other questions, or questions that the model was trained on."""
    lines = []
    if told := [f"{name_of(run)}: {part}" for run in runs if (part := part_of(run))]:
        lines += [f"Not the whole benchmark as it is pinned: {'; '.join(told)}.", ""]
    return lines + [part for line in trained_lines(runs) for part in (line, "")]


def trained_lines(runs: Sequence[Results]) -> list[str]:
    """Which runs are about questions that their model was trained on."""
    told = [f"{name_of(run)}, {trained}" for run in runs if (trained := trained_on_told(run))]
    note = "These figures do not tell how good it is on others"
    return [f"TRAINED ON what it was asked: {'; '.join(told)}. {note}."] if told else []


def summary_line(run: Results) -> str:
    """The line that a run prints when it ends."""
    figures, part = run["results"][NO_CONTROL], part_of(run)
    asked = f"{figures['n']}{f' (asked: {part})' if part else ''}"
    told = [f"{run['arm']}, {run['benchmark']}, split {split_of(run)}: {with_interval(figures)} on {asked}"]
    if answers_nothing(run):
        told.append("it answers nothing: no output is an answer")
    if trained := trained_on_told(run):
        told.append(f"TRAINED ON {trained}")
    for control, outcomes in run["outcomes"].items():
        failed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if outcome != ANSWERED)
        if failed:
            told.append(f"{'' if control == NO_CONTROL else f'{control}: '}not asked or not answered: {failed}")
    return "; ".join(told)


def main_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The table of arms."""
    head = ["arm", "seed", "questions", "accuracy [95 % interval]", "unanswered", "silent audio", "another clip's audio"]
    shown = ("unanswered", "silent_accuracy", "swapped_accuracy")
    rows = [[e["arm"], e["seed"], e["n"], with_interval(e), *(percent(e[name]) for name in shown)] for e in entries]
    return table(head, rows)


def protocols_table(runs: Sequence[Results]) -> list[str]:
    """Every protocol's figures side by side, with both kinds of error; also over the questions that the average leaves out."""
    head = ["arm", "seed", "questions", "protocol", "accuracy [95 % interval]", "error clustered by clip", "unanswered"]
    rows = []
    for run in runs:
        for protocol, scored in by_protocol(run).items():
            parts = {"average": scored, **({"all": scored["all"]} if "all" in scored else {})}
            for told, part in parts.items():
                cells = [with_interval(part), percent(part["error"]), percent(part["unanswered"])]
                rows.append([run["arm"], run["seed"], f"{told}, {part['n']:,}", protocol, *cells])
    return table(head, rows)


def missing_answers(run: Results) -> list[tuple[str, int, str, int]]:
    """
    Where a run was not all that it seems: what was given, to how many questions a text came back, why not to the others, and
    clips that were cut.

    A clip is cut to the model's window; which it is is told of the clips themselves alone.
    """
    rows = []
    for control, outcomes in run.get("outcomes", {}).items():
        reasons = [f"{count} {outcome}" for outcome, count in sorted(outcomes.items()) if outcome != ANSWERED]
        num_cut = run.get("clips_cut", 0) if control == NO_CONTROL else 0
        if reasons or num_cut:
            rows.append((CONTROLS.get(control, "the clip"), outcomes.get(ANSWERED, 0), ", ".join(reasons) or "–", num_cut))
    return rows


def losses_table(runs: Sequence[Results]) -> list[str]:
    """To which questions no text came back, and why; how many clips were heard in part. Nothing where all is well."""
    head = ["arm", "seed", "given", "text came back", "no text, and why", "clips cut to the model's window"]
    rows = [[run["arm"], run["seed"], *losses] for run in runs for losses in missing_answers(run)]
    return table(head, rows) if rows else []


def controls_table(runs: Sequence[Results]) -> list[str]:
    """What each run gains over its controls, and how often it keeps its choice when choices are shuffled."""
    head = ["arm", "seed", *(f"gain over {told}" for told in CONTROLS.values()), "same choice when shuffled"]
    rows = []
    for run in runs:
        gains = [gain_cell(run, name) for name in CONTROLS]
        kept = "–"
        if "consistency" in run:
            kept = with_interval(run["consistency"], "same_choice") + _pairs_told(run, run["consistency"]["n"])
        rows.append([run["arm"], run["seed"], *gains, kept])
    return table(head, rows)


def gain_cell(scored: dict[str, Any], control: str) -> str:
    """What a run gains over a control, and over how many questions where a text did not come back to all both ways."""
    if control not in scored["gains"]:
        return "–"
    gain = Comparison(**scored["gains"][control])
    return f"{gain}{_pairs_told(scored, gain.n)}"


def _pairs_told(scored: dict[str, Any], n: int) -> str:
    return f" (n={n:,})" if part_of_pairs(scored, n) else ""


def breakdown_titles(benchmark: str) -> dict[str, str]:
    """Titles of a benchmark's breakdowns, by their key in the results; every benchmark has one by position."""
    titles = {name: breakdown.title for name, breakdown in get_benchmark(benchmark).breakdowns.items()}
    return titles | {BY_POSITION: "By position of the right choice"}


def breakdown_note(benchmark: str, runs: Sequence[Results], group: str) -> str:
    """A sentence below the title of a breakdown; empty where there is none."""
    if group == BY_POSITION:
        return POSITION_NOTE
    names = {name for run in runs for name in run["results"][NO_CONTROL][group]}
    return get_benchmark(benchmark).breakdowns[group].note(names)


def breakdown_table(runs: Sequence[Results], group: str) -> list[str]:
    """Accuracy per group of questions, under every protocol; by type also the average, as in the paper's Table 2."""
    several = any(OFFICIAL in by_protocol(run) for run in runs)
    head, columns = ["arm", "seed", *(["protocol"] if several else [])], []
    for run in runs:
        for protocol, scored in by_protocol(run).items():
            parts = dict(scored[group])
            if group == "by_type":
                parts |= {"average": scored, **({"all": scored["all"]} if "all" in scored else {})}
            columns.append(([run["arm"], run["seed"], *([protocol] if several else [])], parts))
    averages = ("average", "all")
    names = sorted({name for _, parts in columns for name in parts}, key=lambda name: (name in averages, name == "all", name))
    rows = []
    for told, parts in columns:
        cells = [f"{with_interval(parts[name])} (n={parts[name]['n']})" if name in parts else "–" for name in names]
        rows.append([*told, *cells])
    head += [name or "not told" for name in names]
    if len(names) > MAX_ACROSS:
        label, *turned = zip(head, *rows, strict=True)
        fixed = 3 if several else 2
        head = ["questions", *(", ".join(map(str, row[:fixed])) for row in rows)]
        rows = [list(line) for line in [label, *turned][fixed:]]
    return table(head, rows)


def pairs_of(runs: Sequence[FinishedRun]) -> Iterator[tuple[FinishedRun, FinishedRun]]:
    """Runs of one seed to compare: each with the one before it, and with the first, in the order given."""
    by_seed: dict[int, list[FinishedRun]] = {}
    for run in runs:
        by_seed.setdefault(run.results["seed"], []).append(run)
    for of_seed in by_seed.values():
        for i, run in enumerate(of_seed[1:], start=1):
            yield run, of_seed[i - 1]
            if i > 1:
                yield run, of_seed[0]


def comparisons_lines(runs: Sequence[FinishedRun]) -> list[str]:
    """Runs on one benchmark compared question by question."""
    answers: dict[str, Any] = {}
    rows, told = [], []
    for first, second in pairs_of(runs):
        try:
            for run in (first, second):
                if run.folder not in answers:
                    answers[run.folder] = answers_of(run)
            c = compare_runs(answers[first.folder], answers[second.folder], first.results["benchmark"])
        except InputError as error:  # a report of both is no mistake; only this comparison has no sense
            end = "" if str(error).endswith("?") else "."
            told.append(f"Not compared: {name_of(first.results)} with {name_of(second.results)}: {error}{end}")
            continue
        names = [first.results["arm"], second.results["arm"], first.results["seed"]]
        rows.append([*names, c, c.only_first, c.only_second, f"{c.p_value:.2g}"])
    head = ["run", "less", "seed", "difference [95 % interval]", "only the run right", "only the other right", "McNemar p"]
    return [*(table(head, rows) if rows else []), *(["", *told] if told else [])]

"""
The paper's tables, with our runs beside the paper's figures.

`tables/*.yaml` hold every row of the paper's Tables 1 and 2. A row of another group names that group under `by`. Any other row
has the modality and `method` of its evaluation; a row of a trained model also has the `recipe` that trains it.

A run with a name (`--arm`, which `--row` sets) belongs to the row with that `key`, or to no row. A run without a name belongs
to the row of its modality and method whose `key` is a folder in its model's path (`sft-tts_agfv/model`), or whose `model` it
evaluates. A row stays empty without a run, and when several runs of one seed fit it.

Figures are by the paper's protocol. The interval of a difference is that of two independent proportions (Newcombe 1998, method
10: from the two Wilson intervals). The paper gives no counts, so its figure is treated as a proportion of the benchmark's n
questions, or of the run's n where the benchmark's is not known (AVQA). Where questions share clips, both counts are divided by
the design effect, that is, our squared standard error clustered by clip over the usual one. Both models answer the same
questions, which would make the interval narrower; by how much cannot be computed without the paper's answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.reporting.finished_runs import FinishedRun, run_names, split_of
from evaluation.reporting.sections import num_asked, overlap_lines, with_interval
from evaluation.running.controls import NO_CONTROL
from evaluation.scoring.statistics import format_difference
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError
from sightsound.data.sources import REPO_ID
from sightsound.data.statistics import wilson_interval
from sightsound.hub.cards import markdown_table


TABLES = ("table1", "table2")
METHOD = (
    "Differences are ours less the paper's, percent points, with 95 % intervals of two independent proportions (Newcombe's "
    "method 10), widened by the design effect of questions that share clips. By the paper's protocol; unanswered is wrong."
)

Results = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """
    One column of a table, and where a run's results have its figures.

    Args:
        title (`str`): The printed heading.
        paper (`str`): The paper's column that it is compared with.
        benchmark (`str`): The benchmark of its runs.
        type (`str`, *optional*): A question type; without it, all questions that the benchmark's average counts.
        all (`bool`): Include the questions that the average leaves out.
        n (`int`, *optional*): Number of questions of the whole benchmark, where that is known.
    """

    title: str
    paper: str
    benchmark: str
    type: str | None = None
    all: bool = False
    n: int | None = None

    def of(self, results: Results) -> dict[str, Any] | None:
        """This column's figures in a run; None where the run has no such question."""
        scored = results["results"][NO_CONTROL]
        if self.type is not None:
            return scored["by_type"].get(self.type)
        return scored.get("all", scored) if self.all else scored


@dataclass(frozen=True)
class Row:
    """One row of a table. `paper` has the paper's figure of each of its columns, None for an empty cell."""

    key: str
    section: str
    name: str
    label: str
    modality: str
    paper: dict[str, float | None]
    model: str | None = None
    method: str | None = None
    recipe: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str


class Difference(NamedTuple):
    """Ours less the paper's with its 95 % interval, percent points."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return format_difference(*self)


def load_table(name: str) -> Table:
    """
    A table of the paper.

    Raises:
        `InputError`: There is none of that name.
    """
    import yaml

    if name not in TABLES:
        raise InputError(f"unknown table '{name}'; expected one of {', '.join(TABLES)}")
    text = yaml.safe_load((Path(__file__).with_name("tables") / f"{name}.yaml").read_text())
    heads = text["paper_columns"]
    rows = [Row(**row | {"paper": dict(zip(heads, row["paper"], strict=True))}) for row in text["rows"]]
    return Table(text["title"], [Column(**column) for column in text["columns"]], rows, text["note"])


def row_of(table: Table, results: Results) -> Row | None:
    """The row that a run belongs to; None where the table has none for it."""
    if not any(column.benchmark == results["benchmark"] for column in table.columns):
        return None
    rows = [row for row in table.rows if row.by is None]
    arm = results["settings"].get("arm")  # not results["arm"]: a report may add to that to make it unique
    if arm is not None:
        return next((row for row in rows if row.key == arm), None)
    asked = [row for row in rows if (row.modality, row.method) == tuple(results["method"].split("/"))]
    model, folders = results["model"], Path(results["model"]).parts
    trained = (row for row in asked if row.recipe and row.key in folders)
    untrained = (row for row in asked if row.model and not row.recipe and _is_model(model, row.model))
    return next((row for found in (trained, untrained) for row in found), None)


def _is_model(model: str, repo_id: str) -> bool:
    """Whether it is that Hub model, or a folder or served model of the same name. A Hub model of another owner is not."""
    return model == repo_id if REPO_ID.fullmatch(model) else Path(model).name == repo_id.split("/")[1]


def _by_place(table: Table, runs: Sequence[Results]) -> dict[tuple[str, int, str], list[int]]:
    """Row's key, seed and benchmark -> positions of the runs that fit."""
    places: dict[tuple[str, int, str], list[int]] = {}
    for i, results in enumerate(runs):
        row = row_of(table, results)
        if row is not None:
            places.setdefault((row.key, results["seed"], results["benchmark"]), []).append(i)
    return places


def match(table: Table, runs: Sequence[Results]) -> dict[str, dict[int, dict[str, Results]]]:
    """Runs by the table's rows: row's key -> seed -> benchmark -> results. The runs that `conflicts` names are left out."""
    found: dict[str, dict[int, dict[str, Results]]] = {}
    for (key, seed, benchmark), fitting in _by_place(table, runs).items():
        if len(fitting) == 1:
            found.setdefault(key, {}).setdefault(seed, {})[benchmark] = runs[fitting[0]]
    return found


def conflicts(table: Table, runs: Sequence[FinishedRun]) -> list[str]:
    """One message for each row that several runs of one seed fit."""
    messages = []
    for (key, seed, benchmark), fitting in _by_place(table, [run.results for run in runs]).items():
        if len(fitting) > 1:
            names = ", ".join(run_names([runs[i].folder for i in fitting]))
            messages.append(
                f"Several runs fit row '{key}' on {benchmark} with seed {seed}: {names}. "
                "Give one of them; one that was run under another name (--arm) fits no row."
            )
    return messages


def runs_without_row(table: Table, runs: Sequence[Results]) -> list[str]:
    """Names the runs on the table's benchmarks that belong to no row."""
    benchmarks = {column.benchmark for column in table.columns}
    others = (run for run in runs if run["benchmark"] in benchmarks and row_of(table, run) is None)
    names = [run["arm"] + (f" on {run['benchmark']}" if len(benchmarks) > 1 else "") for run in others]
    return [f"In no row: {', '.join(dict.fromkeys(names))}."] if names else []


def splits_of(table: Table, runs: Sequence[Results]) -> list[str]:
    """Names the splits of our figures in the table."""
    found = {(run["benchmark"], split_of(run)): None for run in runs if row_of(table, run) is not None}
    return [f"Ours: {', '.join(f'split {split} of {benchmark}' for benchmark, split in found)}."] if found else []


def other_questions(table: Table, runs: Sequence[Results]) -> list[str]:
    """Names the figures on another split than the benchmark's, or on the first questions of a split (`--limit`)."""
    others = []
    for (key, seed, benchmark), fitting in _by_place(table, runs).items():
        run = runs[fitting[0]]
        split, limit, n = split_of(run), run["settings"].get("limit"), num_asked(run)
        # A run with fewer questions than the limit has all questions of its split.
        is_cut = limit is not None and n >= limit and n != run.get("benchmark_questions")
        if len(fitting) == 1 and (is_cut or split != get_benchmark(benchmark).split):
            others.append(f"{key} (seed {seed}) on {benchmark}: split {split}, {n:,} questions{' (--limit)' if is_cut else ''}")
    return [f"Of another split, or of a part of one: {'; '.join(others)}."] if others else []


def other_models(table: Table, runs: Sequence[Results]) -> list[str]:
    """Names the rows whose figures are of another model than the paper's, as far as its name or its card says."""
    rows: dict[str, list[str]] = {}
    for results in runs:
        row = row_of(table, results)
        if row is not None and row.model is not None:
            model = results.get("trained_from") if row.recipe else results["model"]
            if model is not None and not _is_model(model, row.model):
                rows.setdefault(model, []).append(row.key)
    found = (f"{model} ({', '.join(dict.fromkeys(keys))})" for model, keys in rows.items())
    return [f"Ours, of another model than the row's or under another name: {'; '.join(found)}."] if rows else []


def difference(ours: dict[str, Any], paper: float, n: int | None) -> Difference:
    """
    Our figure minus the paper's; the module's docstring describes the interval.

    Args:
        ours (`dict`): `accuracy` and clustered `error` in percent (None for one clip), and `n`.
        paper (`float`): The paper's figure, percent.
        n (`int`, *optional*): Number of questions behind the paper's figure; defaults to the run's.
    """
    p, q = ours["accuracy"] / 100, paper / 100
    variance = p * (1 - p) / ours["n"]
    effect = max(1.0, (ours["error"] / 100) ** 2 / variance) if ours["error"] and variance else 1.0
    num_ours, num_papers = ours["n"] / effect, (n or ours["n"]) / effect
    low_p, high_p = wilson_interval(p * num_ours, num_ours)
    low_q, high_q = wilson_interval(q * num_papers, num_papers)
    low, high = p - q - sqrt((p - low_p) ** 2 + (high_q - q) ** 2), p - q + sqrt((high_p - p) ** 2 + (q - low_q) ** 2)
    return Difference(100 * (p - q), 100 * low, 100 * high)


def _ours_cell(column: Column, figures: dict[str, Any]) -> str:
    of_all = "" if column.n in (None, figures["n"]) else f" of {column.n:,}"
    return f"{with_interval(figures)} (n={figures['n']:,}{of_all})"


def _lines_of(row: Row, columns: list[Column], by_seed: dict[int, dict[str, Results]]) -> Iterator[tuple[str, list[str]]]:
    """The printed lines of a row: whose figures they are, and the cells."""
    paper = [row.paper[column.paper] for column in columns]
    yield "paper", ["–" if figure is None else f"{figure:.1f}" for figure in paper]
    if row.by:
        yield "ours", [f"by {row.by}", *[""] * (len(columns) - 1)]
    elif not by_seed:
        yield "ours", ["not run"] * len(columns)
    for seed, by_benchmark in sorted(by_seed.items()):
        found = [column.of(by_benchmark[column.benchmark]) if column.benchmark in by_benchmark else None for column in columns]
        yield (
            f"ours, seed {seed}",
            ["not run" if f is None else _ours_cell(c, f) for c, f in zip(columns, found, strict=True)],
        )
        pairs = zip(columns, found, paper, strict=True)
        yield "difference", ["–" if f is None or p is None else str(difference(f, p, c.n)) for c, f, p in pairs]


def table_lines(table: Table, runs: Sequence[FinishedRun]) -> list[str]:
    """The table as Markdown lines: per row the paper's figures, ours and the difference; then notes on runs left out."""
    all_results = [run.results for run in runs]
    matched = match(table, all_results)
    placed = [run for run in all_results if row_of(table, run) is not None]
    cells: list[list[str]] = []
    section = None
    for row in table.rows:
        if row.section != section:
            section = row.section
            cells.append([f"**{section}**", *[""] * (len(table.columns) + 2)])
        for i, (whose, figures) in enumerate(_lines_of(row, table.columns, matched.get(row.key, {}))):
            cells.append([*((row.name, row.label) if i == 0 else ("", "")), whose, *figures])
    lines = markdown_table(["model", "method", "figures", *(column.title for column in table.columns)], cells)
    notes = [*splits_of(table, all_results), *other_models(table, all_results), *other_questions(table, all_results)]
    notes += [*overlap_lines(placed), *runs_without_row(table, all_results), *conflicts(table, runs)]
    return [f"**{table.title}**", "", *lines, "", f"{METHOD} {table.note}", *(f"\n{note}" for note in notes)]

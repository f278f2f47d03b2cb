"""
The paper's tables, and our runs beside them.

`evaluation/tables/*.yaml` hold every row of the paper's Tables 1 and 2. A row of another group names it under `by`; any other
has the modality and `method` in which the model is asked, and one of a model that is trained the `recipe` that trains it. A run
that was named (`--arm`) belongs to the row with that `key`, or to none. Any other run belongs to the row of its modality and
method whose key a folder of its model has (`sft-tts_agfv/model`), or whose model it is. Nothing stands for a row without a run,
nor for one that several runs of a seed fit.

Figures are by the paper's protocol. The interval of a difference is that of two independent proportions (Newcombe 1998, method
10: from the two Wilson intervals). The paper gives no counts: its figure is taken as a proportion of the benchmark's n
questions, or of as many as the run had where that is not known (AVQA). Where questions share clips, both are taken to have as
many fewer questions as our standard error clustered by clip says (the design effect). Both answer the same questions, which
would make the interval narrower by what cannot be known without the paper's answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.benchmarks import get_benchmark
from evaluation.reporting.finished_runs import FinishedRun, run_names, split_of
from evaluation.reporting.sections import trained_lines
from evaluation.running.controls import NO_CONTROL
from sightsound.cli import InputError
from sightsound.data.sources import REPO_ID


TABLES = ("table1", "table2")
Z = 1.959964  # of 95 % of the normal distribution
METHOD = (
    "Differences are ours less the paper's, percent points, with 95 % intervals as of two independent proportions (Newcombe's "
    "method 10), both with the design effect of our questions sharing clips. By the paper's protocol; unanswered is wrong."
)

Results = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """
    One column of a table, and what it is in a run's results.

    Args:
        title (`str`): As printed.
        paper (`str`): The paper's column that it stands beside.
        benchmark (`str`): Whose runs have it.
        type (`str`, *optional*): Of questions; without, all that the benchmark's average counts.
        all (`bool`): Every question, also those that the average leaves out.
        n (`int`, *optional*): Questions of the whole benchmark, where that is known.
    """

    title: str
    paper: str
    benchmark: str
    type: str | None = None
    all: bool = False
    n: int | None = None

    def of(self, results: Results) -> dict[str, Any] | None:
        """This column's figures in a run; None where it asked no such question."""
        scored = results["results"][NO_CONTROL]
        if self.type is not None:
            return scored["by_type"].get(self.type)
        return scored.get("all", scored) if self.all else scored


@dataclass(frozen=True)
class Row:
    """One row of a table; `paper` has the paper's figures by its columns, None where it has none."""

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
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def load_table(name: str) -> Table:
    """
    A table of the paper.

    Raises:
        `InputError`: There is none of that name.
    """
    import yaml

    if name not in TABLES:
        raise InputError(f"unknown table '{name}'; expected one of {', '.join(TABLES)}")
    text = yaml.safe_load((Path(__file__).parents[1] / "tables" / f"{name}.yaml").read_text())
    heads = text["paper_columns"]
    rows = [Row(**row | {"paper": dict(zip(heads, row["paper"], strict=True))}) for row in text["rows"]]
    return Table(text["title"], [Column(**column) for column in text["columns"]], rows, text["note"])


def row_of(table: Table, results: Results) -> Row | None:
    """The row that a run belongs to; None where the table has none for it."""
    if not any(column.benchmark == results["benchmark"] for column in table.columns):
        return None
    rows = [row for row in table.rows if row.by is None]
    arm = results["settings"].get("arm")  # a report's own name of the run may say more
    if arm is not None:
        return next((row for row in rows if row.key == arm), None)
    asked = [row for row in rows if (row.modality, row.method) == tuple(results["method"].split("/"))]
    model, folders = results["model"], Path(results["model"]).parts
    trained = (row for row in asked if row.recipe and row.key in folders)
    untrained = (row for row in asked if row.model and not row.recipe and _is_model(model, row.model))
    return next((row for found in (trained, untrained) for row in found), None)


def _is_model(model: str, repo_id: str) -> bool:
    """Whether it is that Hub model, or a folder or a server's model that is named like it; somebody's fork is another one."""
    return model == repo_id if REPO_ID.fullmatch(model) else Path(model).name == repo_id.split("/")[1]


def _by_place(table: Table, runs: Sequence[Results]) -> dict[tuple[str, int, str], list[int]]:
    """Row's key, seed and benchmark -> which runs fit."""
    places: dict[tuple[str, int, str], list[int]] = {}
    for i, results in enumerate(runs):
        row = row_of(table, results)
        if row is not None:
            places.setdefault((row.key, results["seed"], results["benchmark"]), []).append(i)
    return places


def match(table: Table, runs: Sequence[Results]) -> dict[str, dict[int, dict[str, Results]]]:
    """Runs by the table's rows: row's key -> seed -> benchmark -> results. What `conflicts` tells of is left out."""
    found: dict[str, dict[int, dict[str, Results]]] = {}
    for (key, seed, benchmark), fitting in _by_place(table, runs).items():
        if len(fitting) == 1:
            found.setdefault(key, {}).setdefault(seed, {})[benchmark] = runs[fitting[0]]
    return found


def conflicts(table: Table, runs: Sequence[FinishedRun]) -> list[str]:
    """Where several runs of one seed fit the same row: nobody said which of them is meant."""
    told = []
    for (key, seed, benchmark), fitting in _by_place(table, [run.results for run in runs]).items():
        if len(fitting) > 1:
            names = ", ".join(run_names([runs[i].folder for i in fitting]))
            told.append(
                f"Several runs fit row '{key}' on {benchmark} with seed {seed}: {names}. "
                "Give one of them; one that was run under another name (--arm) fits no row."
            )
    return told


def left_out(table: Table, runs: Sequence[Results]) -> list[str]:
    """Which runs on the table's benchmarks are in none of its rows."""
    benchmarks = {column.benchmark for column in table.columns}
    others = (run for run in runs if run["benchmark"] in benchmarks and row_of(table, run) is None)
    names = [run["arm"] + (f" on {run['benchmark']}" if len(benchmarks) > 1 else "") for run in others]
    return [f"In no row: {', '.join(dict.fromkeys(names))}."] if names else []


def splits_of(table: Table, runs: Sequence[Results]) -> list[str]:
    """Which splits our figures in the table are about."""
    found = {(run["benchmark"], split_of(run)): None for run in runs if row_of(table, run) is not None}
    return [f"Ours: {', '.join(f'split {split} of {benchmark}' for benchmark, split in found)}."] if found else []


def other_questions(table: Table, runs: Sequence[Results]) -> list[str]:
    """Which figures are about another split than the benchmark's, or about the first questions of one."""
    told = []
    for (key, seed, benchmark), fitting in _by_place(table, runs).items():
        run = runs[fitting[0]]
        split, limit, scored = split_of(run), run["settings"].get("limit"), run["results"][NO_CONTROL]
        n = scored.get("all", scored)["n"]
        # With fewer than the limit the split has no more.
        is_cut = limit is not None and n >= limit and n != run.get("benchmark_questions")
        if len(fitting) == 1 and (is_cut or split != get_benchmark(benchmark).split):
            told.append(f"{key} (seed {seed}) on {benchmark}: split {split}, {n:,} questions{' (--limit)' if is_cut else ''}")
    return [f"Of another split, or of a part of one: {'; '.join(told)}."] if told else []


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a proportion, for a number of questions that is no integer: an effective one."""
    middle, half = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


def difference(ours: dict[str, Any], paper: float, n: int | None) -> Difference:
    """
    Ours less the paper's figure, as the module says.

    Args:
        ours (`dict`): `accuracy` and clustered `error` in percent (None for one clip), and `n`.
        paper (`float`): The paper's figure, percent.
        n (`int`, *optional*): Questions that it is taken to be about; those of the run when not given.
    """
    p, q = ours["accuracy"] / 100, paper / 100
    variance = p * (1 - p) / ours["n"]
    effect = max(1.0, (ours["error"] / 100) ** 2 / variance) if ours["error"] and variance else 1.0
    (low_p, high_p), (low_q, high_q) = _wilson(p, ours["n"] / effect), _wilson(q, (n or ours["n"]) / effect)
    low, high = p - q - sqrt((p - low_p) ** 2 + (high_q - q) ** 2), p - q + sqrt((high_p - p) ** 2 + (q - low_q) ** 2)
    return Difference(100 * (p - q), 100 * low, 100 * high)


def _ours_cell(column: Column, figures: dict[str, Any]) -> str:
    told = f"{figures['accuracy']:.1f} [{figures['low']:.1f}, {figures['high']:.1f}]"
    return f"{told} (n={figures['n']:,}{'' if column.n in (None, figures['n']) else f' of {column.n:,}'})"


def _lines_of(row: Row, columns: list[Column], by_seed: dict[int, dict[str, Results]]) -> Iterator[tuple[str, list[str]]]:
    """What stands in a row: whose figures, and the cells."""
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
    """The table as Markdown: for every row the paper's figures, ours and the difference; and what could not be put there."""
    all_results = [run.results for run in runs]
    matched = match(table, all_results)
    placed = [run for run in all_results if row_of(table, run) is not None]
    lines = [f"| model | method | figures | {' | '.join(column.title for column in table.columns)} |"]
    lines.append("| --- " * (len(table.columns) + 3) + "|")
    section = None
    for row in table.rows:
        if row.section != section:
            section = row.section
            lines.append(f"| **{section}** |" + " |" * (len(table.columns) + 2))
        for i, (whose, cells) in enumerate(_lines_of(row, table.columns, matched.get(row.key, {}))):
            name = f"{row.name} | {row.label}" if i == 0 else " | "
            lines.append(f"| {name} | {whose} | {' | '.join(cells)} |")
    told = [*splits_of(table, all_results), *other_questions(table, all_results), *trained_lines(placed)]
    told += [*left_out(table, all_results), *conflicts(table, runs)]
    return [f"**{table.title}**", "", *lines, "", f"{METHOD} {table.note}", *(f"\n{line}" for line in told)]

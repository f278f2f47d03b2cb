"""
`--table table1 --row KEY`: a row of the paper's tables in place of the flags that say how it is run.

The row gives `--model`, `--modality`, `--method`, `--arm` and `--benchmark`. Its key is the run's name, by which a report finds
the row again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from evaluation.reporting.paper_tables import Row, Table, load_table
from sightsound.cli import InputError


_OF_ROW = ("modality", "method", "arm")  # fixed by the row; `model` and `benchmark` have rules of their own


def _given_flags(argv: Sequence[str]) -> dict[str, str]:
    """The flags of the command line that a row has something to say about."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("table", "row", "model", "benchmark", "prompt_file", *_OF_ROW):
        parser.add_argument(f"--{name}")
    try:
        given, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:  # a flag without its value: the command's own parser says so
        return {}
    return {name: value for name, value in vars(given).items() if value is not None}


def find_row(table: Table, name: str, key: str) -> Row:
    """
    The row of a table that is to be run.

    Raises:
        `InputError`: The table has no such row, or it is another group's.
    """
    rows = {row.key: row for row in table.rows}
    ours = ", ".join(row.key for row in table.rows if row.by is None)
    if key not in rows:
        raise InputError(f"--row {key}: {name} has no such row; expected one of {ours}")
    if rows[key].by is not None:
        raise InputError(f"--row {key}: these figures are by {rows[key].by}, and cannot be run; expected one of {ours}")
    return rows[key]


def flags_of_row(table: Table, row: Row, given: dict[str, str]) -> dict[str, str]:
    """
    The values of the flags that a row stands for.

    `--model` may name another model than the row's: a copy, the name at a server, the checkpoint that the row's recipe trained,
    or another student. `--benchmark` may name some of the table's benchmarks.

    Args:
        given (`dict`): Flags of the command line, without `--`.

    Raises:
        `InputError`: A flag contradicts the row, or the row's model has to be trained first.
    """
    benchmarks = list(dict.fromkeys(column.benchmark for column in table.columns))
    asked = [name.strip() for name in given.get("benchmark", ",".join(benchmarks)).split(",")]
    if others := [name for name in asked if name not in benchmarks]:
        raise InputError(f"--benchmark {others[0]}: the table of --row {row.key} is about {','.join(benchmarks)}; leave it out")
    if "prompt_file" in given:
        raise InputError(f"--prompt_file: --row {row.key} has the prompt of its method; leave one of the two flags out")
    fixed = {"modality": row.modality, "method": str(row.method), "arm": row.key}
    for name, value in fixed.items():
        if given.get(name, value) != value:
            raise InputError(f"--{name} {given[name]}: --row {row.key} is run with --{name} {value}; leave that flag out")
    if row.recipe and "model" not in given:
        raise InputError(f"--row {row.key} is of a trained model: train it with {row.recipe} and give it with --model")
    return {"model": given.get("model", str(row.model)), "benchmark": ",".join(asked), **fixed}


def with_row(argv: Sequence[str]) -> list[str]:
    """
    The command line with the flags that `--table` and `--row` stand for; unchanged without these two.

    Raises:
        `InputError`: One of the two is missing, there is no such row, or another flag contradicts it.
    """
    given = _given_flags(argv)
    name, key = given.get("table"), given.get("row")
    if name is None and key is None:
        return list(argv)
    if name is None:
        raise InputError(f"--row {key} is a row of a table of the paper; give --table table1 or table2 as well")
    table = load_table(name)
    if key is None:
        raise InputError(f"--table {name} needs --row, one of {', '.join(row.key for row in table.rows if row.by is None)}")
    values = flags_of_row(table, find_row(table, name, key), given)
    return [*argv, *(part for flag, value in values.items() if flag not in given for part in (f"--{flag}", value))]

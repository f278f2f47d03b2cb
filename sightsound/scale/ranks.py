"""
Past one machine: the questions of a stage in slices, a rank for each.

    python dataset_builders/traces.py ... --executor local|ray|slurm --num_tasks 16

A rank works on its slice in `OUTPUT_DIR/.ranks/R-of-N`, with its own lock and journal. The command itself starts the ranks
that are not finished (`executors.py`), joins what they wrote, in the order of the questions, and leaves the same files as one
rank would: what is drawn depends on the question, not on the rank. Run again after a kill, or with another `--num_tasks`, it
makes no request a second time. `--executor slurm` only submits; the same command joins once the jobs are done.

Folders have to be on a file system that every rank sees.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.parquet import read_parquet
from sightsound.locks import is_locked
from sightsound.method.selection import Funnel
from sightsound.scale.executors import (
    LEDGER_PART,
    RANKS_FOLDER,
    ROWS_PART,
    ScaleArguments,
    end_with_parent,
    rank_folder,
    run_ranks,
)
from sightsound.stage import JOURNAL_FILE, Journal, Stage, changed_settings, read_journal, read_settings


Row = dict[str, Any]
# A row of the ledger, and the detail that `ledger.parquet` has of it.
Result = tuple[Row, str | None]


def open_stage(args: ScaleArguments, output_dir: str, settings: dict[str, Any]) -> Stage:
    """The stage's folder, or, for a rank, its own below it."""
    args.check_scale()
    if args.rank is None:
        return Stage(output_dir, settings)
    end_with_parent()
    return Stage(rank_folder(output_dir, args.rank, args.num_tasks), settings)


def slice_of(num_rows: int, rank: int, num_tasks: int, align: int) -> slice:
    """
    A rank's rows: consecutive, and all ranks' together are all rows.

    Args:
        align (`int`): Slices begin at a multiple of it. An engine whose draws depend on what is generated together
            needs the same calls in each slice as in one run: its `requests_per_call`.
    """
    units = -(-num_rows // align)
    begin, end = (align * (units * part // num_tasks) for part in (rank, rank + 1))
    return slice(begin, min(end, num_rows))


def collect(
    args: ScaleArguments,
    output_dir: str,
    stage: Stage,
    ids: Sequence[str],
    align: int,
    work: Callable[[Sequence[str], Path], Iterator[Result]],
) -> Iterator[Result] | None:
    """
    The results of all questions in order, whoever makes them; None where there is nothing to go on with: in a rank, which has
    written its part, and when the ranks have only been submitted.

    Args:
        stage (`Stage`): From `open_stage`, entered.
        ids (`Sequence[str]`): All questions of the stage, in order.
        align (`int`): See `slice_of`.
        work (`Callable`): Some of the questions and the path of a journal -> their results, in order.
    """
    if args.rank is not None:
        mine = ids[slice_of(len(ids), args.rank, args.num_tasks, align)]
        if not (stage.path / LEDGER_PART).is_file():
            _adopt(Path(output_dir), args, mine, stage)
            results = work(mine, stage.path / JOURNAL_FILE) if mine else iter(())
            write_results(results, stage.path / ROWS_PART, stage.path / LEDGER_PART)
        print(f"rank {args.rank} of {args.num_tasks}: {len(mine)} questions")
        return None
    if args.num_tasks == 1:
        _adopt(Path(output_dir), args, ids, stage)
        return work(ids, stage.path / JOURNAL_FILE)
    for rank in range(args.num_tasks):
        _check_settings(rank_folder(output_dir, rank, args.num_tasks), stage)
    return _join(args, output_dir, ids) if run_ranks(args, output_dir) else None


def write_results(results: Iterable[Result], data: Path, ledger: Path) -> Funnel:
    """Write rows as they come, then their ledger: where that is, both are complete. Returns what was written, counted."""
    details: dict[str, str] = {}
    funnel = Funnel()

    def rows() -> Iterator[Row]:
        for row, detail in results:
            if detail is not None:
                details[row["id"]] = detail
            funnel.add(row)
            yield row

    parquet.write_parquet(rows(), schema.traces_features(), data)
    written = read_parquet([data], ["id", "outcome"])
    parquet.write_ledger((entry | {"detail": details.get(entry["id"])} for entry in written), ledger)
    return funnel


def finish(stage: Stage) -> None:
    """Complete the stage; what ranks left has served its purpose and goes."""
    stage.finish()
    shutil.rmtree(stage.path / RANKS_FOLDER, ignore_errors=True)


def journals(output_dir: str | Path) -> list[Path]:
    """Every journal of a stage, whoever wrote it."""
    folder = Path(output_dir)
    return [
        file for file in (folder / JOURNAL_FILE, *sorted((folder / RANKS_FOLDER).glob(f"*/{JOURNAL_FILE}"))) if file.is_file()
    ]


def _check_settings(folder: Path, stage: Stage) -> None:
    """A rank that was started by hand, or before the output folder was emptied, may have been given other settings."""
    recorded = read_settings(folder)
    if recorded is not None and (changed := changed_settings(recorded, stage.settings)):
        raise InputError(
            f"{folder} was made with other settings ({', '.join(changed)}); delete it, or give those settings again"
        )


def _adopt(output_dir: Path, args: ScaleArguments, ids: Sequence[str], stage: Stage) -> None:
    """Copy what was finished under another `--num_tasks` into the journal of this run or rank: it was paid for."""
    own = output_dir if args.rank is None else rank_folder(output_dir, args.rank, args.num_tasks)
    same_division = f"-of-{args.num_tasks}"
    others = [
        file
        for file in journals(output_dir)
        if file.parent != own and not (args.rank is not None and file.parent.name.endswith(same_division))
    ]
    if not others:
        return
    wanted = set(ids)
    journal = Journal(own / JOURNAL_FILE)
    for file in others:
        if file.parent != output_dir and is_locked(file.parent):
            raise InputError(f"{file.parent} is being written by a rank of an earlier command; wait for it or stop it")
        _check_settings(file.parent, stage)
        # A question's own request, or one of several whose keys begin with its id ("id/0#1").
        found = ((key, value) for key, value, _ in read_journal(file) if key in wanted or key.rpartition("/")[0] in wanted)
        journal.append((key, value) for key, value in found if key not in journal)
    journal.close()


def _join(args: ScaleArguments, output_dir: str, ids: Sequence[str]) -> Iterator[Result]:
    """The ranks' results in order, a row group in memory at a time."""
    expected = iter(ids)
    for rank in range(args.num_tasks):
        folder = rank_folder(output_dir, rank, args.num_tasks)
        entries = read_parquet([folder / LEDGER_PART])
        for row, entry in zip(read_parquet([folder / ROWS_PART]), entries, strict=True):
            if row["id"] != next(expected, None):
                raise InputError(f"{folder} holds question {row['id']} out of turn; delete that folder and run again")
            yield row, entry["detail"]
    left = next(expected, None)
    if left is not None:
        raise InputError(f"no rank has question {left}; delete {Path(output_dir) / RANKS_FOLDER} and run again")

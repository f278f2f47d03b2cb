"""
A stage on many machines: its questions in slices, one rank per slice.

    python dataset_builders/traces.py ... --executor local|ray|slurm --num_tasks 16

A rank works on its slice in `OUTPUT_DIR/.ranks/R-of-N`, with its own lock and journal. The command starts the ranks that are
not finished (`executors.py`) and joins their results in the order of the questions. The files are the same as with one rank,
because draws depend on the question and not on the rank. A rerun after a kill, or with another `--num_tasks`, repeats no
request. `--executor slurm` only submits; run the same command again to join when the jobs are done.

Folders have to be on a file system that all ranks share.
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
# A row of the traces, and its `detail` in `ledger.parquet`.
Result = tuple[Row, str | None]


def open_stage(args: ScaleArguments, output_dir: str, settings: dict[str, Any]) -> Stage:
    """The stage's folder, or a rank's own folder below it."""
    args.check_scale()
    if args.rank is None:
        return Stage(output_dir, settings)
    end_with_parent()
    return Stage(rank_folder(output_dir, args.rank, args.num_tasks), settings)


def slice_of(num_rows: int, rank: int, num_tasks: int, align: int) -> slice:
    """
    The consecutive rows of a rank. The ranks together have all rows.

    Args:
        align (`int`): Slices begin at a multiple of it. If an engine's draws depend on which requests share a call, give its
            `requests_per_call`: the calls are then the same as in one run.
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
    write: Callable[[Iterable[Result], Path, Path], Any] | None = None,
) -> Iterator[Result] | None:
    """
    The results of all questions in order, from this process or from ranks.

    None in a rank, which writes its part of the results here, and when ranks were only submitted.

    Args:
        stage (`Stage`): From `open_stage`, entered.
        ids (`Sequence[str]`): All questions of the stage, in order.
        align (`int`): See `slice_of`.
        work (`Callable`): Gets ids and the path of a journal; returns the results of these questions, in order.
        write (`Callable`, *optional*): Writes a rank's results and then their ledger; `write_results` for rows of traces.
    """
    if args.rank is not None:
        mine = ids[slice_of(len(ids), args.rank, args.num_tasks, align)]
        if not (stage.path / LEDGER_PART).is_file():
            _adopt(Path(output_dir), args, mine, stage)
            results = work(mine, stage.path / JOURNAL_FILE) if mine else iter(())
            (write or write_results)(results, stage.path / ROWS_PART, stage.path / LEDGER_PART)
        print(f"rank {args.rank} of {args.num_tasks}: {len(mine)} questions")
        return None
    if args.num_tasks == 1:
        _adopt(Path(output_dir), args, ids, stage)
        return work(ids, stage.path / JOURNAL_FILE)
    for rank in range(args.num_tasks):
        _check_settings(rank_folder(output_dir, rank, args.num_tasks), stage)
    return _join(args, output_dir, ids) if run_ranks(args, output_dir) else None


def write_results(results: Iterable[Result], data: Path, ledger: Path) -> Funnel:
    """Write rows as they come, then their ledger, which marks both as complete. Returns the funnel of the rows."""
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
    """Complete the stage and delete the folders of its ranks."""
    stage.finish()
    shutil.rmtree(stage.path / RANKS_FOLDER, ignore_errors=True)


def journals(output_dir: str | Path) -> list[Path]:
    """Every journal of a stage: its own and those of ranks."""
    folder = Path(output_dir)
    return [
        file for file in (folder / JOURNAL_FILE, *sorted((folder / RANKS_FOLDER).glob(f"*/{JOURNAL_FILE}"))) if file.is_file()
    ]


def _check_settings(folder: Path, stage: Stage) -> None:
    """Raise `InputError` where a rank has other settings, because it was started by hand or for an earlier stage."""
    recorded = read_settings(folder)
    if recorded is not None and (changed := changed_settings(recorded, stage.settings)):
        raise InputError(
            f"{folder} was made with other settings ({', '.join(changed)}); delete it, or give those settings again"
        )


def _adopt(output_dir: Path, args: ScaleArguments, ids: Sequence[str], stage: Stage) -> None:
    """Copy requests that finished under another `--num_tasks` into the journal of this run or rank: they are paid for."""
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
        # Keys are a question's id, or begin with it ("id/0#1").
        found = ((key, value) for key, value, _ in read_journal(file) if key in wanted or key.rpartition("/")[0] in wanted)
        journal.append((key, value) for key, value in found if key not in journal)
    journal.close()


def _join(args: ScaleArguments, output_dir: str, ids: Sequence[str]) -> Iterator[Result]:
    """The ranks' results in order, with one row group in memory."""
    expected = iter(ids)
    for rank in range(args.num_tasks):
        folder = rank_folder(output_dir, rank, args.num_tasks)
        entries = read_parquet([folder / LEDGER_PART])
        for row, entry in zip(read_parquet([folder / ROWS_PART]), entries, strict=True):
            if row["id"] != next(expected, None):
                raise InputError(f"{folder} holds question {row['id']} in the wrong order; delete that folder and run again")
            yield row, entry["detail"]
    left = next(expected, None)
    if left is not None:
        raise InputError(f"no rank has question {left}; delete {Path(output_dir) / RANKS_FOLDER} and run again")

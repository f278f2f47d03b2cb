"""
Find finished runs of `python -m evaluation run`, and read their predictions.

A run over several benchmarks has one sub-folder per benchmark, named after it. A folder that is not a finished run is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.benchmarks import Row
from evaluation.running.controls import NO_CONTROL
from evaluation.running.requests import VIDEO
from evaluation.scoring.prediction_files import read_rows
from sightsound.benchmarks import benchmark_names, get_benchmark
from sightsound.cli import InputError, read_json
from sightsound.stage import STAGE_FILE, is_complete


RESULTS_FILE = "results.json"
RESULT_KEYS = ("benchmark", "results", "gains")  # a results.json of an earlier version lacks one of these
GRADED_KEYS = ("benchmark", "benchmark_revision", "control", "video_id", "choices", "gold", "correct")  # of a prediction
REMEDY = "give the --output_dir of a finished `python -m evaluation run`"


def predictions_file(folder: Path, benchmark: str) -> Path:
    """Where a run keeps its predictions on a benchmark."""
    return folder / "data" / f"predictions-{benchmark}.parquet"


class FinishedRun(NamedTuple):
    """One benchmark of a run: its folder and its `results.json`."""

    folder: str
    results: dict[str, Any]


def find_runs(folders: list[str]) -> list[FinishedRun]:
    """
    The runs in these folders, one per benchmark of each.

    Raises:
        `InputError`: A folder holds no run, an incomplete one, one of an earlier version, or two on one benchmark.
    """
    return [run for folder in folders for run in _runs_in(Path(folder))]


def _runs_in(folder: Path) -> list[FinishedRun]:
    if not folder.is_dir():
        raise InputError(f"--runs: {folder} is no folder; {REMEDY}")
    # Only sub-folders named after a benchmark belong to a run: the parent folder of several runs is not a run.
    by_name = [folder / name for name in benchmark_names() if (folder / name).is_dir()]
    candidates = [folder] if _is_stage(folder) else by_name
    if not any(map(_is_stage, candidates)):
        below = _first_below(folder)
        others = f" itself; there are some in its sub-folders, e.g. {below}" if below else ""
        raise InputError(f"--runs: {folder} holds no finished run{others}; {REMEDY}")
    runs: dict[str, FinishedRun] = {}
    for run in map(_read_run, candidates):
        other = runs.setdefault(run.results["benchmark"], run)
        if other is not run:
            seen = f"{other.folder} and {run.folder} are both on {run.results['benchmark']}"
            raise InputError(f"--runs: {seen}; give one of them")
    return list(runs.values())


def _is_stage(folder: Path) -> bool:
    return (folder / STAGE_FILE).is_file() or (folder / RESULTS_FILE).is_file()


def _first_below(folder: Path) -> Path | None:
    """A finished run one or two levels below, for the message."""
    files = (file for pattern in (f"*/{RESULTS_FILE}", f"*/*/{RESULTS_FILE}") for file in sorted(folder.glob(pattern)))
    return next((file.parent for file in files if is_complete(file.parent)), None)


def _read_run(folder: Path) -> FinishedRun:
    if not is_complete(folder):
        raise InputError(f"--runs: {folder} is not complete; rerun its evaluation first")
    if not (folder / RESULTS_FILE).is_file():
        raise InputError(f"--runs: {folder} holds no {RESULTS_FILE}; {REMEDY}")
    results = read_json(str(folder / RESULTS_FILE))
    missing = [name for name in RESULT_KEYS if name not in results]
    if missing:
        raise InputError(f"{folder}/{RESULTS_FILE} lacks {', '.join(missing)}: not by this version; evaluate again")
    return FinishedRun(str(folder), results)


def answers_of(run: FinishedRun) -> dict[str, Row]:
    """
    A run's predictions with the clip (no control) by question id.

    Raises:
        `InputError`: There are none, they are of another benchmark, or a question occurs twice.
    """
    folder, benchmark = run.folder, run.results["benchmark"]
    file = predictions_file(Path(folder), benchmark)
    if not file.is_file():
        raise InputError(f"{folder} holds no predictions on {benchmark}; {REMEDY}")
    by_benchmark = answers_in(str(file))
    if others := [name for name in by_benchmark if name != benchmark]:
        raise InputError(f"{file} holds predictions on {others[0]}, expected {benchmark}; {REMEDY}")
    split = split_of(run.results) if "settings" in run.results else None
    answers = by_benchmark.get(benchmark, {})
    return {row_id: row | {"split": row.get("split") or split} for row_id, row in answers.items()}


def answers_in(file: str) -> dict[str, dict[str, Row]]:
    """
    The predictions with the clip (no control) in a run's file: per benchmark, by question id.

    Raises:
        `InputError`: The file is not a run's, or a question occurs twice.
    """
    answers: dict[str, dict[str, Row]] = {}
    for row in read_rows(file):
        if missing := [name for name in GRADED_KEYS if name not in row]:
            seen = f"{file} does not hold the right answers (it lacks {', '.join(missing)})"
            raise InputError(f"{seen}; give the questions: --benchmark, and --annotations or --dataset")
        if row["control"] == NO_CONTROL:
            of_benchmark = answers.setdefault(row["benchmark"], {})
            if row["id"] in of_benchmark:
                raise InputError(f"{file}: question {row['id']} occurs twice; keep only the answer that counts")
            of_benchmark[row["id"]] = row
    return answers


def is_given_audio(results: dict[str, Any]) -> bool:
    """Whether the model got audio. A run on silent video says nothing about the use of audio."""
    return results["method"].split("/")[0] != VIDEO


def split_of(results: dict[str, Any]) -> str:
    """The split of a run's questions."""
    return results["settings"]["split"] or get_benchmark(results["benchmark"]).split


def run_names(folders: Sequence[str]) -> list[str]:
    """The shortest ends of the folders' paths that are unique. (A report does not show where folders lie on this machine.)"""
    parts = [Path(folder).resolve().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    least = 2 if any(part[-1] in benchmark_names() for part in parts) else 1  # "avqa" alone names a benchmark, not a run
    depth = next((n for n in range(least, longest) if len({part[-n:] for part in parts}) == len(parts)), least)
    return ["/".join(part[-depth:]) for part in parts]

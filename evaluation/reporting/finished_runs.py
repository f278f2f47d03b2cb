"""
Find finished runs of `python -m evaluation run`: what is none, or only a part of one, is refused.

A run over several benchmarks has a folder of each, by its name, in its own.
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
NEEDED = ("benchmark", "results", "gains")  # what no run of an earlier version had all of
JUDGED = ("benchmark", "benchmark_revision", "control", "video_id", "choices", "gold", "correct")  # of a run's predictions
REMEDY = "give the --output_dir of a finished `python -m evaluation run`"


def predictions_file(folder: Path, benchmark: str) -> Path:
    """Where a run keeps its predictions on a benchmark."""
    return folder / "data" / f"predictions-{benchmark}.parquet"


class FinishedRun(NamedTuple):
    """One benchmark of a run: its folder, and its `results.json`."""

    folder: str
    results: dict[str, Any]


def find_runs(folders: list[str]) -> list[FinishedRun]:
    """
    The runs in these folders, one per benchmark of each.

    Raises:
        `InputError`: A folder holds none, one that is not complete or not by this version, or two on one benchmark.
    """
    return [run for folder in folders for run in _runs_in(Path(folder))]


def _runs_in(folder: Path) -> list[FinishedRun]:
    if not folder.is_dir():
        raise InputError(f"--runs: {folder} is no folder; {REMEDY}")
    # Folders of other names are not looked at: the parent of several runs is none itself.
    named = [folder / name for name in benchmark_names() if (folder / name).is_dir()]
    parts = [folder] if _is_stage(folder) else named
    if not any(map(_is_stage, parts)):
        below = _first_below(folder)
        others = f" itself; there are some in its sub-folders, e.g. {below}" if below else ""
        raise InputError(f"--runs: {folder} holds no finished run{others}; {REMEDY}")
    runs: dict[str, FinishedRun] = {}
    for run in map(_read_run, parts):
        other = runs.setdefault(run.results["benchmark"], run)
        if other is not run:
            told = f"{other.folder} and {run.folder} are both on {run.results['benchmark']}"
            raise InputError(f"--runs: {told}; give one of them")
    return list(runs.values())


def _is_stage(folder: Path) -> bool:
    return (folder / STAGE_FILE).is_file() or (folder / RESULTS_FILE).is_file()


def _first_below(folder: Path) -> Path | None:
    """A finished run in a folder of this one, or in that folder's of a benchmark."""
    files = (file for pattern in (f"*/{RESULTS_FILE}", f"*/*/{RESULTS_FILE}") for file in sorted(folder.glob(pattern)))
    return next((file.parent for file in files if is_complete(file.parent)), None)


def _read_run(folder: Path) -> FinishedRun:
    if not is_complete(folder):
        raise InputError(f"--runs: {folder} is not complete; rerun its evaluation first")
    if not (folder / RESULTS_FILE).is_file():
        raise InputError(f"--runs: {folder} holds no {RESULTS_FILE}; {REMEDY}")
    results = read_json(str(folder / RESULTS_FILE))
    missing = [name for name in NEEDED if name not in results]
    if missing:
        raise InputError(f"{folder}/{RESULTS_FILE} lacks {', '.join(missing)}: not by this version; evaluate again")
    return FinishedRun(str(folder), results)


def answers_of(run: FinishedRun) -> dict[str, Row]:
    """
    What a run answered with the clip: its predictions by question id, without those of its controls.

    Raises:
        `InputError`: There are none, they are of another benchmark, or a question stands there twice.
    """
    folder, benchmark = run.folder, run.results["benchmark"]
    file = predictions_file(Path(folder), benchmark)
    if not file.is_file():
        raise InputError(f"{folder} holds no predictions on {benchmark}; {REMEDY}")
    others, answers = answers_in(str(file)), {}
    for name in others:
        if name != benchmark:
            raise InputError(f"{file} holds predictions on {name}, expected {benchmark}; {REMEDY}")
        answers = others[name]
    split = split_of(run.results) if "settings" in run.results else None
    return {row_id: row | {"split": row.get("split") or split} for row_id, row in answers.items()}


def answers_in(file: str) -> dict[str, dict[str, Row]]:
    """
    What a run's file of predictions holds of answers with the clip: per benchmark, by question id.

    Raises:
        `InputError`: It is no file of a run, or a question stands there twice.
    """
    answers: dict[str, dict[str, Row]] = {}
    for row in read_rows(file):
        if missing := [name for name in JUDGED if name not in row]:
            lacking = f"{file} does not hold the right answers (it lacks {', '.join(missing)})"
            raise InputError(f"{lacking}; give the questions: --benchmark, and --annotations or --dataset")
        if row["control"] == NO_CONTROL:
            of_benchmark = answers.setdefault(row["benchmark"], {})
            if row["id"] in of_benchmark:
                raise InputError(f"{file}: question {row['id']} stands there twice; which of the answers counts cannot be told")
            of_benchmark[row["id"]] = row
    return answers


def hears(results: dict[str, Any]) -> bool:
    """Whether the model was given sound: silent video has none to be deaf to."""
    return results["method"].split("/")[0] != VIDEO


def split_of(results: dict[str, Any]) -> str:
    """The split that a run was asked."""
    return results["settings"]["split"] or get_benchmark(results["benchmark"]).split


def run_names(folders: Sequence[str]) -> list[str]:
    """Folders by as much of their ends as tells runs apart: where they lie on this machine is nobody's business."""
    parts = [Path(folder).resolve().parts for folder in folders]
    longest = max(map(len, parts), default=1)
    least = 2 if any(part[-1] in benchmark_names() for part in parts) else 1  # a benchmark's folder is in the run's
    depth = next((n for n in range(least, longest) if len({part[-n:] for part in parts}) == len(parts)), least)
    return ["/".join(part[-depth:]) for part in parts]

"""
What finished runs of `python -m evaluation run --controls silent text_only` say of a dataset's questions without their clips.

Every run is one try of each question under each condition. These controls give a model nothing of a clip but its length, so
a run belongs to a dataset if its questions have the same choices, answers and lengths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.parquet import read_parquet
from sightsound.method.audio_contribution import SILENT, TEXT_ONLY, contribution_of
from sightsound.stage import is_complete


Row = dict[str, Any]

CONDITIONS = (TEXT_ONLY, SILENT)
REMEDY = "give the --output_dir of a finished `python -m evaluation run --controls silent text_only`"
SAME = ("video_id", "choices", "gold", "duration_s")  # of a prediction, compared with those of the question of its id
MADE_BY = ("model", "model_revision", "method")
READ = ("id", "control", "correct", "output", "split", "benchmark_revision", "generation", *SAME, *MADE_BY)
NO_AUDIO_METHODS = ("video/", "audio_video/")


@dataclass(frozen=True)
class BlindRun:
    """
    The answers of one run without the clips.

    Args:
        folder (`str`): As it was given.
        made_by (`dict`): Model, revision, method and seed, and the revision of the dataset that was asked.
        is_right (`dict`): Condition -> id of a question -> whether the answer was right.
    """

    folder: str
    made_by: Row
    is_right: dict[str, dict[str, bool]]

    @property
    def conditions(self) -> str:
        return " and ".join(self.is_right)


def predictions_of(run: str, benchmark: str) -> Path:
    """
    The file of a run's predictions on a benchmark. A run over several benchmarks has a folder for each.

    Raises:
        `InputError`: There is none, or the run has not finished.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"--runs: {run} is no folder; {REMEDY}")
    name = f"predictions-{benchmark}.parquet"
    found = next((each for each in (folder, folder / benchmark) if (each / "data" / name).is_file()), None)
    for each in (folder, folder / benchmark):
        if (each / "stage.json").is_file() and not is_complete(each):
            raise InputError(f"--runs: {each} is not complete; rerun its evaluation first")
    if found is None:
        others = sorted({file.stem.removeprefix("predictions-") for file in folder.glob("**/data/predictions-*.parquet")})
        seen = f"predictions on {', '.join(others)}, and --dataset is {benchmark}" if others else "no predictions"
        raise InputError(f"--runs: {run} holds {seen}; {REMEDY} on this dataset")
    return found / "data" / name


def read_questions(files: Sequence[str]) -> dict[str, Row]:
    """What predictions repeat of the questions of a split, by id."""
    names = {"video_id": "video_id", "choices": "choices", "gold": "answer", "duration_s": "duration_s"}
    rows = read_parquet(files, ["id", *names.values()])
    return {row["id"]: {name: row[column] for name, column in names.items()} for row in rows}


def read_run(run: str, file: Path, split: str, questions: Mapping[str, Row]) -> BlindRun:
    """
    Read the predictions of a run under the conditions without the clip. No answer counts as not right.

    Args:
        run (`str`): The folder, for messages.
        file (`Path`): From `predictions_of`.
        split (`str`): Of the dataset.
        questions (`Mapping`): From `read_questions`.

    Raises:
        `InputError`: It is about other questions, gave the model something of the clip, or has neither condition.
    """
    is_right: dict[str, dict[str, bool]] = {condition: {} for condition in CONDITIONS}
    answered, controls, made_by = dict.fromkeys(CONDITIONS, 0), set[str](), Row()
    for row in read_parquet([file], READ):
        controls.add(row["control"])
        if row["control"] not in CONDITIONS:
            continue
        if not made_by:
            made_by = _made_by(row)
            _check_blind(run, row, split)
        _check_question(run, row, questions)
        of_condition = is_right[row["control"]]
        if row["id"] in of_condition:
            raise InputError(f"--runs: {file} has question {row['id']} twice under {row['control']}; evaluate again")
        of_condition[row["id"]] = bool(row["correct"]) and row["output"] is not None
        answered[row["control"]] += row["output"] is not None
    # A model that takes no request without audio refuses all of them: nobody has tried then.
    tried = {condition: is_right[condition] for condition in CONDITIONS if answered[condition]}
    if not tried:
        refused = [condition for condition in CONDITIONS if is_right[condition]]
        seen = f"no answer under {' and '.join(refused)}" if refused else f"only the controls {', '.join(sorted(controls))}"
        remedy = "run the same evaluation with --controls silent text_only; answers that it has are kept"
        raise InputError(f"--runs: {run} has {seen}, expected {' or '.join(CONDITIONS)}; {remedy}")
    return BlindRun(run, made_by, tried)


def _made_by(row: Row) -> Row:
    seed = json.loads(row["generation"]).get("seed")
    return {name: row[name] for name in MADE_BY} | {"seed": seed, "dataset": row["benchmark_revision"]}


def _check_blind(run: str, row: Row, split: str) -> None:
    if row["split"] is not None and row["split"] != split:
        raise InputError(f"--runs: {run} is about split '{row['split']}', expected '{split}'; evaluate with --split {split}")
    if row["method"].startswith(NO_AUDIO_METHODS):
        raise InputError(f"--runs: {run} was asked with {row['method']}: it saw the video; evaluate with --modality audio")
    if json.loads(row["generation"]).get("traces"):
        raise InputError(f"--runs: {run} was given a teacher's reasoning about the clips; evaluate with another --method")


def _check_question(run: str, row: Row, questions: Mapping[str, Row]) -> None:
    known = questions.get(row["id"])
    if known is None:
        raise InputError(f"--runs: {run} has a question {row['id']} that --dataset lacks; {REMEDY} on this dataset and split")
    if other := next((name for name in SAME if row[name] != known[name]), None):
        seen = f"question {row['id']} with {other} {row[other]!r}, expected {known[other]!r}"
        raise InputError(f"--runs: {run} has {seen}; {REMEDY} on this dataset")


def check_together(runs: Sequence[BlindRun]) -> None:
    """
    Raises:
        `InputError`: Two runs are the same try, or have other conditions than each other.
    """
    first: dict[str, BlindRun] = {}
    for run in runs:
        key = json.dumps([run.made_by[name] for name in (*MADE_BY, "seed")])
        other = first.setdefault(key, run)
        if other is not run and any(
            other.is_right.get(condition, {}).keys() & run.is_right[condition].keys() for condition in run.is_right
        ):
            same = f"model ({run.made_by['model']}), method ({run.made_by['method']}) and seed ({run.made_by['seed']})"
            raise InputError(f"--runs: {other.folder} and {run.folder} have the same {same}: one try; give one of them")
    different = next((run for run in runs if run.conditions != runs[0].conditions), None)
    if different is not None:
        seen = f"{runs[0].folder} has answers under {runs[0].conditions}, {different.folder} under {different.conditions}"
        raise InputError(f"--runs: {seen}; give runs with the same controls, which can be added to a finished run")


def labels_of(runs: Sequence[BlindRun]) -> dict[str, Row]:
    """The columns of the audio contribution of every question that was tried, by id."""
    ids = dict.fromkeys(row_id for run in runs for answers in run.is_right.values() for row_id in answers)
    return {row_id: _label(row_id, runs) for row_id in ids}


def _label(row_id: str, runs: Sequence[BlindRun]) -> Row:
    shares: dict[str, float | None] = dict.fromkeys(CONDITIONS)
    tries = 0
    for condition in CONDITIONS:
        answers = [run.is_right[condition][row_id] for run in runs if row_id in run.is_right.get(condition, {})]
        if answers:
            shares[condition], tries = sum(answers) / len(answers), len(answers)
    text_only, silent = shares[TEXT_ONLY], shares[SILENT]
    word = contribution_of(text_only, silent)
    return {
        "audio_contribution": word,
        "text_only_correct": text_only,
        "silent_correct": silent,
        "blind_tries": tries,
    }

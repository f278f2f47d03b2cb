"""
Read predictions, ours or others': a run's parquet, a JSON list or JSON lines.

An output stands under `output` (ours), `model_output` (MMAU's official script) or `model_prediction` (its older one), the id of
its question under `id`, or as the benchmark names it. Nothing is guessed: what cannot be one question's output is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluation.benchmarks import Row, get_benchmark
from evaluation.controls import CONTROLS, NO_CONTROL, SHUFFLED, shuffled
from sightsound.annotations import RowError
from sightsound.cli import InputError, read_json


OUTPUT_KEYS = ("output", "model_output", "model_prediction")
CHOICES = ("choices", "multi_choice")
OURS = {"gold", "matched_by"}  # a run's file, where `answer` is what the model answered
# What people keep of a question, one of ours or an official annotation, when they add the output to it: key -> the columns of
# ours that it may equal. An official `question` is our `video_question`; an `answer` is an index, with MMAU a text.
TEXTS = {
    **dict.fromkeys(("question", "video_question", "question_text"), ("video_question", "question")),
    "question_content": ("template",),
    **dict.fromkeys(CHOICES, ("choices",)),
    **dict.fromkeys(("answer_text", "anser"), ("answer_text",)),
    **dict.fromkeys(("answer", "gold"), ("answer",)),
}


def read_rows(path: str) -> list[Row]:
    """
    The rows of a file of predictions, as they are.

    Raises:
        `InputError`: It is of no known kind, cannot be read, or holds no rows.
    """
    readers = {".parquet": _read_parquet, ".json": _read_list, ".jsonl": _read_lines}
    if Path(path).is_dir():
        found = sorted(map(str, Path(path).rglob("data/predictions-*.parquet")))
        raise InputError(f"{path} is a folder; give a file of predictions{f', such as {found[0]}' if found else ''}")
    kind = Path(path).suffix.lower()
    if kind not in readers:
        raise InputError(f"{path}: expected a file of predictions named .parquet, .json (one list) or .jsonl, found '{kind}'")
    rows = readers[kind](path)
    if not rows:
        raise InputError(f"{path} holds no predictions; was it written to the end?")
    other = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if other is not None:
        raise InputError(f"{path}: row {other} is no object with an id and an output but a {type(rows[other]).__name__}")
    return rows


def _read_parquet(path: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is no parquet file that can be read ({error})") from error


def _read_list(path: str) -> list[Any]:
    hint = "if it holds one JSON object per line, name it .jsonl"
    try:
        rows = read_json(path)
    except InputError as error:
        if isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data":
            raise InputError(f"{path} is not one JSON list ({error.__cause__}); {hint}") from error
        raise
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected one list of predictions, found a {type(rows).__name__}; {hint}")
    return rows


def _read_lines(path: str) -> list[Any]:
    def rows() -> Iterator[Any]:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {number} is not JSON ({error}); was the file cut short?") from error

    try:
        return list(rows())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a file of predictions") from error


def _output_key(rows: list[Row], path: str) -> str:
    found = [key for key in OUTPUT_KEYS if any(key in row for row in rows)]
    if len(found) != 1:
        told = f"both {' and '.join(found)}" if found else f"none, but {', '.join(sorted(map(str, rows[0])))}"
        raise InputError(f"{path}: expected the outputs under one of {', '.join(OUTPUT_KEYS)}, found {told}")
    return found[0]


def _ids(rows: list[Row], id_key: str, path: str) -> list[str]:
    ids = []
    for number, row in enumerate(rows):
        value = row.get("id", row.get(id_key))
        if isinstance(value, bool) or not isinstance(value, str | int):
            expected = "id" if id_key == "id" else f"id or {id_key}"
            raise InputError(f"{path}: row {number} has {value!r} as {expected}, expected a question's id")
        ids.append(str(value))
    return ids


class Predictions:
    """
    Outputs of one run on a benchmark, in the order of its questions.

    Args:
        path (`str`): The file.
        benchmark (`str`): Its name.
        questions (`list[dict]`): Its rows.
        revision (`str`): Where they come from; compared where the file tells its own.

    Attributes:
        outputs (`dict`): Per control, an output per question; None where it is missing or no text.
        rows (`dict`): Per control, the questions as they were asked.
        missing (`dict`): Per control, how many questions have no prediction.
        not_text (`dict`): Per control, how many outputs are something else than text.

    Raises:
        `InputError`: An id is unknown or stands there twice, or the file is about other questions than these.
    """

    def __init__(self, path: str, benchmark: str, questions: list[Row], revision: str):
        self._path, self._benchmark = path, benchmark
        rows = read_rows(path)
        key, ids = _output_key(rows, path), _ids(rows, get_benchmark(benchmark).id_key, path)
        self._check_origin(rows, revision)
        asked = {row["id"]: row for row in questions}
        unknown = [row_id for row_id in ids if row_id not in asked]
        if unknown:
            told = f"{len(unknown)} of {len(ids)} ids are no question of {benchmark} in this revision (first: {unknown[0]})"
            raise InputError(f"{path}: {told}; were another benchmark, split or revision answered?")
        found: dict[str, dict[str, Row]] = {}
        for row_id, row in zip(ids, rows, strict=True):
            control = row.get("control", NO_CONTROL)
            if control not in (NO_CONTROL, *CONTROLS):
                raise InputError(f"{path}: {control!r} is no control; expected {', '.join((NO_CONTROL, *CONTROLS))}")
            if row_id in found.setdefault(control, {}):
                raise InputError(f"{path}: id {row_id} stands there twice; which of the outputs counts cannot be told")
            found[control][row_id] = row
        if NO_CONTROL not in found:
            raise InputError(f"{path} holds controls only ({', '.join(found)}), and no answer with the clip")
        self.rows = {c: [shuffled(row) for row in questions] if c == SHUFFLED else questions for c in found}
        self.outputs: dict[str, list[str | None]] = {}
        self.missing: dict[str, int] = {}
        self.not_text: dict[str, int] = {}
        for control, given in found.items():
            self._check_texts(given, {row["id"]: row for row in self.rows[control]})
            values = [given[row["id"]].get(key) if row["id"] in given else None for row in questions]
            self.outputs[control] = [value if isinstance(value, str) else None for value in values]
            self.missing[control] = sum(row["id"] not in given or key not in given[row["id"]] for row in questions)
            self.not_text[control] = self.outputs[control].count(None) - self.missing[control]

    def _check_origin(self, rows: list[Row], revision: str) -> None:
        """What our own files tell of where their questions came from."""
        for name, expected in (("benchmark", self._benchmark), ("benchmark_revision", revision)):
            others = {str(row[name]) for row in rows if row.get(name) not in (None, expected)}
            # The digest of an annotation file says nothing of the dataset that was built from it; texts are compared instead.
            if others and not (name == "benchmark_revision" and revision.startswith("sha256:")):
                told = f"{name} {sorted(others)[0]}, expected {expected}"
                raise InputError(f"{self._path} answers other questions: {told}; give the ones that it was made from")

    def _check_texts(self, given: dict[str, Row], questions: dict[str, Row]) -> None:
        """Where a prediction repeats something of its question, it is this benchmark's question in this revision."""
        to_row = get_benchmark(self._benchmark).to_row
        for row_id, row in given.items():
            question = questions[row_id]
            for name, seen, columns in _repeated(row, to_row):
                known = [question[column] for column in columns if column in question]
                if known and seen not in known:
                    told = f"question {row_id} has other texts there than in {self._benchmark} in this revision"
                    differs = f"{name} {seen!r}, expected {known[0]!r}"
                    raise InputError(f"{self._path}: {told} ({differs}); give the questions that it was made from")


def _repeated(row: Row, to_row: Callable[[Any], Row]) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """What a prediction repeats of its question: where it stands, what stands there, and the columns that it may equal."""
    with suppress(RowError):  # a whole official annotation: MUSIC-AVQA's question is what its template and values make
        row = row | to_row(row)
    for name, columns in TEXTS.items():
        value = row.get(name)
        if value is None or (name == "answer" and OURS & row.keys()):
            continue
        if columns == ("answer",) and isinstance(value, str):
            columns = ("answer_text",)
        if name in CHOICES and isinstance(value, list):  # AVQA has numbers among them
            value = [str(choice) for choice in value]
        yield name, value, columns

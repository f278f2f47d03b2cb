r"""
Read files of predictions: the parquet of `python -m evaluation run`, and the JSON of other tools.

The rows of a JSON file are a list, one object per line, an object of rows by id, or the only list in an object (lm-eval's
`{"samples": {TASK: [...]}}`). A row is flat, or has its question under `doc` as in the samples of lmms-eval:

    {"id": "q0", "choices": "[\"Man\", \"Woman\"]", "model_prediction": "Man"}
    {"doc_id": 0, "doc": {"id": "q0", "choices": "[\"Man\", \"Woman\"]"}, "target": "Man", "resps": [["The answer is A."]]}
    {"q0": "The answer is A."}
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluation.benchmarks import Row
from sightsound.cli import InputError, read_json
from sightsound.data.schema import LETTERS


# Keys of an output. If a file has several, the first is read: the model's text comes before an answer that a script extracted
# from it. `raw_model_outputs` and lm-eval's `resps` hold a list of samples; `filtered_resps` is `resps` after filters;
# `model_output` and `model_prediction` are those of MMAU's official script (now and earlier), `answer_prediction` is MMAR's.
OUTPUT_KEYS = (
    "output",
    "raw_model_outputs",
    "resps",
    "filtered_resps",
    "model_output",
    "response",
    "model_prediction",
    "answer_prediction",
    "prediction",
)
WHOLE_OUTPUTS = ("output", "model_output", "response")  # a file with two of these has the outputs of two models
CHOICES = ("choices", "multi_choice")
EXPECTED = "expected a list of predictions, one JSON object per line, or an object of them by id"


def read_rows(path: str) -> list[Row]:
    """
    The rows of a file of predictions, flat, with their choices as lists.

    Raises:
        `InputError`: The file has an unknown suffix, cannot be read, or holds no rows.
    """
    if Path(path).is_dir():
        found = sorted(map(str, Path(path).rglob("data/predictions-*.parquet")))
        raise InputError(f"{path} is a folder; give a file of predictions{f', such as {found[0]}' if found else ''}")
    if not Path(path).is_file():
        raise InputError(f"{path} cannot be read (there is no such file); give a file of predictions")
    kind = Path(path).suffix.lower()
    if kind not in (".parquet", ".json", ".jsonl"):
        raise InputError(f"{path}: expected a file of predictions named .parquet, .json (one list) or .jsonl, found '{kind}'")
    rows = _read_parquet(path) if kind == ".parquet" else _read_json(path)
    if not rows:
        raise InputError(f"{path} holds no predictions; was it written to the end?")
    other = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if other is not None:
        raise InputError(f"{path}: row {other} is no object with an id and an output but a {type(rows[other]).__name__}")
    return [_flat(row) for row in rows]


def _read_parquet(path: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is no parquet file that can be read ({error})") from error


def _read_json(path: str) -> list[Any]:
    """One JSON value, or one per line; the suffix does not decide which."""
    try:
        return _rows_in(read_json(path), path)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and (cause.msg == "Extra data" or Path(path).suffix.lower() == ".jsonl"):
            return list(_read_lines(path))
        raise


def _read_lines(path: str) -> Iterator[Any]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.strip():
                    yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is not JSON ({error}); was the file cut short?") from error


def _rows_in(content: Any, path: str) -> list[Any]:
    """The rows of one JSON value."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise InputError(f"{path}: {EXPECTED}; found a {type(content).__name__}")
    if content.keys() & {"id", "question_id", "doc", *OUTPUT_KEYS}:
        return [content]  # JSON lines of a single row
    samples = content.get("samples")
    tables = {
        name: value
        for part in (content, samples if isinstance(samples, dict) else {})
        for name, value in part.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    if len(tables) > 1:
        raise InputError(f"{path} holds several lists of rows ({', '.join(sorted(tables))}); leave only the one that is meant")
    if tables:
        return next(iter(tables.values()))
    if not all(isinstance(value, str | dict | list | None) for value in content.values()):
        raise InputError(f"{path}: {EXPECTED}; found an object with {some_of(content)}")
    by_id = ((name, value if isinstance(value, dict) else {"output": value}) for name, value in content.items())
    return [{"id": name} | row for name, row in by_id]


def some_of(names: Any) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _flat(row: Row) -> Row:
    """A row with the keys of its `doc` beside the others, and its choices as a list."""
    if isinstance(row.get("doc"), dict):
        row = row["doc"] | {name: value for name, value in row.items() if name != "doc"}
    return row | {name: _as_list(row[name]) for name in CHOICES if row.get(name) is not None}


def _as_list(choices: Any) -> Any:
    """Choices as a list: parsed from JSON (lmms-eval) or Python text, or taken from an object of choices by letter."""
    if isinstance(choices, str):
        choices = _parsed(choices)
    if isinstance(choices, dict) and "".join(map(str, choices)).upper() == LETTERS[: len(choices)]:
        choices = list(choices.values())
    return [str(choice) for choice in choices] if isinstance(choices, list | tuple) else choices


def _parsed(text: str) -> Any:
    """The list or object that a text spells out; the text itself where it does not."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            if isinstance(found := parse(text), list | tuple | dict):
                return found
    return text


def output_key(rows: list[Row], path: str) -> str:
    """
    The key of the outputs in a file.

    Raises:
        `InputError`: The file has none of the known keys, or two keys that each hold whole outputs.
    """
    found = [key for key in OUTPUT_KEYS if any(key in row for row in rows)]
    if not found:
        seen = f"none, but {some_of(rows[0])}"
        raise InputError(f"{path}: expected the outputs under one of {', '.join(OUTPUT_KEYS)}, found {seen}")
    filled = [key for key in found if any(row.get(key) is not None for row in rows)] or found
    whole = [key for key in WHOLE_OUTPUTS if key in filled]
    if len(whole) > 1:
        both = f"found both {' and '.join(whole[:2])}; leave only the one that counts"
        raise InputError(f"{path}: expected the outputs under one of {', '.join(OUTPUT_KEYS)}, {both}")
    return filled[0]


def outputs_of(value: Any, key: str) -> list[Any]:
    """The value of an output key as a list of samples: a text is one sample; lm-eval wraps each sample in a list."""
    if isinstance(value, str) and key in ("raw_model_outputs", "resps", "filtered_resps") and value.lstrip().startswith("["):
        value = _parsed(value)
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list):
        return [value]
    return [sample[0] if isinstance(sample, list) and sample else sample for sample in value]

"""Annotation files, other people's prediction files, and `evaluation score` on them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.score import main


def write(path: Path, rows: object) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        path.write_text(json.dumps(rows))
    return path


def score(predictions: Path, annotations: Path, capsys, *flags: str) -> dict:
    given = ["--annotations", str(annotations), "--allow_unpinned", "--predictions", str(predictions)]
    main(["--benchmark", "mmau", *given, "--json", *flags])
    return json.loads(capsys.readouterr().out)


OUTPUTS = ["Man", "(A) Man", "A", "Woman"]


ONE = {"id": "q0", "model_output": "Man"}

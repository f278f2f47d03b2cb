"""Annotations in AVQA's format and the builder that reads them."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.tiny import REPO


def annotation(row_id, name: str, **fields) -> dict:
    """A row in AVQA's own format."""
    return {
        "id": row_id,
        "video_name": name,
        "video_id": 7,
        "question_text": "What is the main source of sound in the video?",
        "multi_choice": ["dog", " bell", "siren", "drum"],
        "answer": 1,
        "question_relation": "Both",
        "question_type": "Come From",
    } | fields


def command(folder: Path, annotations: list | Path, *flags: str) -> list[str]:
    """To be run in `folder`: the card tells the command, and two folders should be able to hold the same bytes."""
    file = annotations
    if isinstance(annotations, list):
        file = "train_qa.json"
        (folder / file).write_text(json.dumps(annotations))
    (folder / "clips").mkdir(exist_ok=True)
    script = str(REPO / "dataset_builders" / "avqa_audio.py")
    paths = ["--train_annotations", str(file), "--media_dir", "clips", "--output_dir", "out"]
    return [sys.executable, script, *paths, "--num_proc", "1", *flags]


def ledger(folder: Path) -> list[dict]:
    return pq.read_table(folder / "out" / "ledger.parquet").to_pylist()

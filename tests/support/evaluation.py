"""`evaluation run` on a small benchmark and a server that always answers the same."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evaluation import run as generate
from sightsound.data import parquet
from sightsound.hub.cards import write_dataset_card


def write_benchmark(rows: list[dict], features: Any, split: str, folder: Path) -> Path:
    parquet.write_parquet(rows, features, folder / "data" / f"{split}-00000-of-00001.parquet")
    write_dataset_card(folder, "# Benchmark\n", {"default": {split: "data/*.parquet"}})
    return folder


def run(**flags: Any) -> None:
    """A flag's value is one, or a list."""
    parts = [[f"--{name}", *map(str, value if isinstance(value, list) else [value])] for name, value in flags.items()]
    generate.main([part for flag in parts for part in flag])


def read(folder: Path) -> tuple[dict, list[dict]]:
    (file,) = (folder / "data").glob("predictions-*.parquet")
    return json.loads((folder / "results.json").read_text()), pq.read_table(file).to_pylist()


def always(text: str):
    return lambda ask: [text] * ask.n

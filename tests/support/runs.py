"""Folders of finished evaluation runs."""

import json
from pathlib import Path

from evaluation.scoring.accuracy import score_run
from evaluation.scoring.protocols import OFFICIAL, PAPER, protocols_of
from sightsound.data import parquet, schema
from tests.support.questions import question


ASKED = {"benchmark": "avqa", "model": "models/student", "method": "audio/cot", "settings": {"split": None, "dataset": "there"}}


def write_results(folder, results: dict, complete: bool = True) -> str:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "stage.json").write_text(json.dumps({"settings": {}, "complete": complete}))
    return str(folder)


def results_on(benchmark: str, rows: list[dict], outputs: list[str], **more) -> dict:
    """A run's results on a benchmark, as `python -m evaluation run` leaves them."""
    scored = score_run(benchmark, protocols_of(benchmark), {"none": outputs}, {"none": rows})
    official = {OFFICIAL: scored[OFFICIAL]["results"]} if OFFICIAL in scored else {}
    settings = ASKED["settings"] | {"arm": more.get("arm")}
    return {"arm": "run", "seed": 0, **ASKED, "benchmark": benchmark, "settings": settings, **scored[PAPER], **official, **more}


def write_predictions(folder: str, rows: list[dict], right: list[bool], benchmark: str = "avqa", revision: str = "r") -> None:
    """The columns that runs are compared by; the others are empty."""
    empty = dict.fromkeys(schema.predictions_features())
    shared = {"control": "none", "benchmark": benchmark, "benchmark_revision": revision}
    asked = zip(rows, right, strict=True)
    kept = ("id", "video_id", "choices", "in_paper")
    predictions = [
        empty | shared | {name: row.get(name) for name in kept} | {"gold": row["answer"], "correct": is_right}
        for row, is_right in asked
    ]
    path = Path(folder) / "data" / f"predictions-{benchmark}.parquet"
    parquet.write_parquet(predictions, schema.predictions_features(), path)


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


MMAU_ROWS = [
    question(i, i % 2, question_type=task, difficulty=level, sub_category=f"kind {i}")
    for i, (task, level) in enumerate([("sound", "easy"), ("sound", "hard"), ("speech", "easy"), ("music", "hard")] * 3)
]


# Both of the rule's words under the official protocol, a letter under the paper's, and nothing.
MMAU_OUTPUTS = ["dog", "B", "", "bell"] * 3


MUSIC_ROWS = [
    {**question(i, 0, question_type=kind, in_paper=kind != "Location"), "choices": ["yes", "no"], "answer_text": "yes"}
    for i, kind in enumerate(["Temporal", "Comparative", "Counting", "Existential", "Location"])
]


ROWS = [question(i, 0, in_paper=i < 4) for i in range(8)]


def write_run(folder: Path, benchmark: str = "avqa", right: int = 8, complete: bool = True, rows: list[dict] = ROWS) -> str:
    results = {"benchmark": benchmark, "arm": folder.name, "seed": 0, "results": {}, "gains": {}}
    path = write_results(folder, results, complete)
    write_predictions(path, rows, [i < right for i in range(len(rows))], benchmark)
    return path

"""
Which questions a model was trained on, so that its accuracy on the same questions can be marked.

`trained_on.json` beside the weights holds a digest of every question that this stage, and the stages of its base, trained on.
It works for copies, for models on the Hub and for datasets that were built again. Ids would not do: they repeat across splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sightsound.data.parquet import open_dataset
from sightsound.data.sources import is_hub_id
from sightsound.stage import fingerprint, read_settings, write_atomically


if TYPE_CHECKING:
    from datasets import Dataset

TRAINED_FILE = "trained_on.json"


def question_digests(rows: Dataset) -> Iterable[tuple[str, str]]:
    """Id and digest of each question. The digest is of the clip's file, the start in that file and the question's text."""
    columns = [name for name in ("id", "media_sha256", "start_s", "question") if name in rows.column_names]
    for row in rows.select_columns(columns):
        identity = json.dumps([row["media_sha256"], float(row.get("start_s") or 0.0), row["question"]])
        yield row["id"], hashlib.sha256(identity.encode()).hexdigest()[:16]


def write_trained_on(folder: Path, *, audio: str, split: str, used: set[str], base: str) -> None:
    """
    Write `trained_on.json` of a finished model or adapter.

    Args:
        folder (`Path`): The folder with the weights.
        audio (`str`), split (`str`): The avqa-audio dataset that it was trained on.
        used (`set[str]`): Ids of the questions that it was trained on.
        base (`str`): The model that training started from: folder or Hub id.
    """
    own = {digest for row_id, digest in question_digests(open_dataset(audio, split)) if row_id in used}
    write_atomically(folder / TRAINED_FILE, json.dumps(sorted(own | (read_trained_on(base) or set()))) + "\n")


def read_trained_on(model: str, revision: str | None = None) -> set[str] | None:
    """Digests of the questions that a model or an adapter was trained on; None where no `trained_on.json` says so."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    file = Path(model, TRAINED_FILE)
    if not file.is_file():
        if Path(model).is_dir() or not is_hub_id(model):
            return None
        try:
            file = Path(hf_hub_download(model, TRAINED_FILE, revision=revision))
        except (EntryNotFoundError, RepositoryNotFoundError):  # not from these recipes, or offline and not in the cache
            return None
    return set(json.loads(file.read_text(encoding="utf-8")))


def count_trained_on(model: str, revision: str | None, rows: Dataset, *, dataset: str, split: str) -> int | None:
    """
    Count the evaluation's questions that the model was trained on.

    Args:
        model (`str`): Folder or Hub id.
        revision (`str`, *optional*): Of a Hub model.
        rows (`Dataset`): The questions.
        dataset (`str`), split (`str`): Where the questions come from.

    Returns:
        `int` or `None`: None if it is not known what the model was trained on.
    """
    known = read_trained_on(model, revision)
    if known is not None:
        return sum(digest in known for _, digest in question_digests(rows))
    settings = read_settings(Path(model).parent) if Path(model).is_dir() else None
    if not settings or "selection" not in settings:
        return None
    # Trained by a version that wrote no digests: any question of the split may have been used.
    return len(rows) if (settings.get("audio"), settings.get("split")) == (fingerprint(dataset), split) else None

"""
Whether a question needs its clip: `strong` and `weak` audio contribution, after the audio questions that text alone answers.

Models answer the question without its clip a few times: with the question alone, and with silence in place of the clip. The
shares that were right are columns of every question dataset (`schema.contribution_features`). A question that is guessed more
often than not teaches a student little about listening. `dataset_builders/audio_contribution.py` fills the columns from
evaluation runs, and a recipe's field `audio_contribution` selects by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sightsound.data.schema import CONTRIBUTION_COLUMNS, UNKNOWN


if TYPE_CHECKING:
    from datasets import Dataset

TEXT_ONLY, SILENT = "text_only", "silent"  # the conditions without the clip, as predictions name them
STRONG, WEAK = "strong", "weak"
CONTRIBUTIONS = (STRONG, WEAK, UNKNOWN)
WEAK_ABOVE = 0.5  # a question that is answered right without its clip in more than this share of the tries is weak


def contribution_of(text_only_correct: float | None, silent_correct: float | None) -> str:
    """
    The audio contribution of a question.

    Args:
        text_only_correct (`float`, *optional*): Share of the tries that were right with the question alone; None if nobody
            tried.
        silent_correct (`float`, *optional*): The same with silence of the clip's length in place of the clip.

    Returns:
        `str`: `WEAK` where the larger share is above `WEAK_ABOVE`, `UNKNOWN` where nobody tried, otherwise `STRONG`.
    """
    known = [share for share in (text_only_correct, silent_correct) if share is not None]
    if not known:
        return UNKNOWN
    return WEAK if max(known) > WEAK_ABOVE else STRONG


def contribution_word(row: Mapping[str, Any]) -> str:
    """The `audio_contribution` of a row; `UNKNOWN` where its file is older than the column, or holds another word."""
    word = row.get("audio_contribution")
    return word if word in (STRONG, WEAK) else UNKNOWN


def known_contribution(*rows: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the first of these rows whose audio contribution is known; without one, `UNKNOWN` and None."""
    row = next((row for row in rows if contribution_word(row) != UNKNOWN), {})
    return {name: row.get(name) for name in CONTRIBUTION_COLUMNS} | {"audio_contribution": contribution_word(row)}


def contributions_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The columns of each row of a question dataset, by id; empty where the dataset is older than the columns."""
    if "audio_contribution" not in dataset.column_names:
        return {}
    names = [name for name in CONTRIBUTION_COLUMNS if name in dataset.column_names]
    return {row.pop("id"): row for row in dataset.select_columns(["id", *names])}

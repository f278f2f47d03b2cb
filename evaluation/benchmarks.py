"""
Benchmarks: which rows, in which revision, under which prompt.

One row of `avqa` (the built avqa-audio dataset, AVQA val_qa.json id 1139):

    {"id": "1139", "video_id": "06GyG4-wONQ", "start_s": 6.0, "audio": {...}, "duration_s": 10.0,
     "question": "How many animals are there in the audio?", "video_question": "How many animals are there in the video?",
     "choices": ["3", "One", "4", "2"], "answer": 3, "answer_text": "2", "question_relation": "Both",
     "question_type": "Which", "media_sha256": "..."}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightsound.cli import InputError
from sightsound.journal import fingerprint
from sightsound.prompts import COT_INSTRUCTION, DIRECT_INSTRUCTION, TEACHER_INSTRUCTION
from sightsound.schema import open_dataset


if TYPE_CHECKING:
    from datasets import Dataset

BENCHMARKS = ("avqa",)
AUDIO, VIDEO = "audio", "video"
# How the model is asked, per modality. A model tuned with a prompt is evaluated with that prompt.
INSTRUCTIONS = {
    (AUDIO, "direct"): DIRECT_INSTRUCTION,
    (AUDIO, "cot"): COT_INSTRUCTION,
    (VIDEO, "direct"): DIRECT_INSTRUCTION,
    (VIDEO, "cot"): TEACHER_INSTRUCTION,
}


def load_benchmark(name: str, dataset: str, split: str, limit: int | None) -> tuple[Dataset, str]:
    """
    Rows of a benchmark and the revision they come from.

    Raises:
        `InputError`: Unknown benchmark, or its dataset cannot be opened.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark '{name}'; expected one of {', '.join(BENCHMARKS)}")
    rows = open_dataset(dataset, split)
    return rows.select(range(min(len(rows), limit or len(rows)))), fingerprint(dataset) or dataset

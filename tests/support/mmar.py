"""Annotations in the format of MMAR, and clips with the names of annotations."""

import os
from collections.abc import Iterable
from pathlib import Path

import soundfile

from tests.support.clips import tone


def criterion(name: str, **fields) -> dict:
    return {"name": name, "scoring_point": f"Award 1 point for {name}.", "note": "Why.", "choices": [0, 1]} | fields


def annotation(row_id: str, **fields) -> dict:
    """A row in MMAR's own format."""
    return {
        "id": row_id,
        "audio_path": f"./audio/{row_id}.wav",
        "question": "What is in the video?",
        "choices": ["Man", "Woman", "Child"],
        "answer": "Man",
        "modality": "mix-sound-speech",
        "category": "Semantic Layer",
        "sub-category": "Content Analysis",
        "language": "en",
        "source": "youtube",
        "url": "https://www.youtube.com/watch?v=x",
        "timestamp": "00:00:00,00:00:10",
        "thinking": "A man speaks.",
        "cue": ["voice"],
        "rubric": [criterion(f"point {i}") for i in range(5)],
    } | fields


def write_clips(names: Iterable[str], folder: Path) -> Path:
    """A short sound under each name; every file is the same one."""
    folder.mkdir(parents=True)
    first = folder.parent / "clip.wav"
    soundfile.write(first, tone(440.0, 16_000, 0.3), 16_000)
    for name in names:
        os.link(first, folder / name)
    return folder

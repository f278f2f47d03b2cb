"""A dataset of segments as `videos.py` leaves it, with one short clip for all of them; and a teacher's replies about them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sightsound.data import parquet, schema
from sightsound.data.audio import encode_flac
from sightsound.hub.cards import write_dataset_card
from tests.support.videos import write_video


def write_segments(folder: Path, count: int, per_video: int = 1, **changed: Any) -> Path:
    """Segments of `count / per_video` videos; their pictures are in `folder / "segments"`."""
    write_video(folder / "segments" / "clip.mp4", seed=0, parts=((1.0, True, "moving"),))
    audio = {"bytes": encode_flac(0.1 * np.ones(1600, np.float32)), "path": "clip.flac"}
    rows = [
        {
            "id": f"video{i // per_video:04d}_{i % per_video:06d}",
            "video_id": f"video{i // per_video:04d}",
            "start_s": float(i % per_video),
            "audio": audio,
            "duration_s": 0.1,
            "media_sha256": "",
            "segment": "clip",
            "source": "a film",
            "license": "cc-by-4.0",
            "author": "somebody",
            "video_sha256": f"{i // per_video:064d}",
            **changed,
        }
        for i in range(count)
    ]
    parquet.write_parquet(rows, schema.segments_features(), folder / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Segments\n", {"default": {"train": "data/train-*.parquet"}})
    return folder


def question(number: int, **changed: Any) -> dict[str, Any]:
    """A question of a reply; another number is another question."""
    choices = [f"a bell of {number}", "two dogs", "heavy rain", "an engine"]
    plain = {
        "type": "which",
        "question": f"What is heard in part {number} of the video?",
        "choices": choices,
        "answer": choices[0],
    }
    return {**plain, **changed}


def reply(*questions: Any) -> str:
    return json.dumps({"questions": list(questions)})

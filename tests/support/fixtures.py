"""Session fixtures: made once, only when a test asks for them, and never written to by a test."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import clips, tiny
from tests.support.mmau import annotation as mmau_annotation


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def student_checkpoint(tiny_folder: Path) -> Path:
    """A Qwen2-Audio of 0.3 M random weights with its processor."""
    return tiny.build_checkpoint("student", tiny_folder / "student")


@pytest.fixture(scope="session")
def teacher_checkpoint(tiny_folder: Path) -> Path:
    """A Qwen2.5-VL of 0.3 M random weights with its processor."""
    return tiny.build_checkpoint("teacher", tiny_folder / "teacher")


@pytest.fixture(scope="session")
def tiny_world(tiny_folder: Path) -> Path:
    """Annotations and `clips/` of a miniature of `tiny.WORLD_SIZE`."""
    return tiny.build_world(tiny_folder / "world")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_world: Path, tiny_folder: Path) -> Path:
    """The avqa-audio folder of `tiny_world`: splits train and validation."""
    return tiny.build_dataset(tiny_world, tiny_folder / "avqa-audio")


@pytest.fixture(scope="session")
def questions(tiny_dataset: Path) -> list[dict[str, Any]]:
    """The rows of its train split, audio undecoded."""
    return tiny.read_rows(tiny_dataset)


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """`clips.write_clip`, for tests that make clips of their own."""
    return clips.write_clip


@pytest.fixture
def mmau_annotations(tmp_path: Path) -> Path:
    """An annotation file of four questions in MMAU's format."""
    rows = [mmau_annotation(f"q{i}", choices=["Man", "Woman", "Child"], task=("sound", "music")[i % 2]) for i in range(4)]
    (tmp_path / "mmau.json").write_text(json.dumps(rows))
    return tmp_path / "mmau.json"


@pytest.fixture(scope="session")
def storm_seed() -> int:
    """Another one each time, printed at the start: of kills at random moments and of random texts."""
    return int(os.environ["STORM_SEED"])

"""Where the tests keep their caches, where they find real data, and how they make clips."""

import os
import tempfile
from pathlib import Path

import pytest


REPO = Path(__file__).resolve().parents[1]

# Set here and not in a fixture: `datasets` and `huggingface_hub` read them once, when a test module imports them.
_CACHE = tempfile.TemporaryDirectory(prefix="sightsound-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": _CACHE.name,
    "HF_DATASETS_CACHE": f"{_CACHE.name}/datasets",
    "TRANSFORMERS_VERBOSITY": "error",
}


def pytest_unconfigure() -> None:
    _CACHE.cleanup()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """`$SIGHTSOUND_REAL_DATA`: real annotations, sounds and videos, which are not part of the repository."""
    folder = Path(os.environ.get("SIGHTSOUND_REAL_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SIGHTSOUND_REAL_DATA to the folder that holds annotations/ and video/")
    return folder


pytest_plugins = ["tests.support.fixtures"]

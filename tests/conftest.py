"""Where the tests keep their caches, where they find real data, and how they make clips."""

import os
import secrets
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


# A fresh seed each time; the processes of `-n 2` share it. `STORM_SEED=N make test-storm` repeats a storm.
os.environ.setdefault("STORM_SEED", str(secrets.randbits(32)))


def pytest_report_header() -> str:
    return f"storm seed: {os.environ['STORM_SEED']}"


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that both processes of `-n 2` have work to the end."""
    longest = ("test_demo.py", "test_smoke_demo.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))

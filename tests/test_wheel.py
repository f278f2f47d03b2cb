"""The wheel: what `pip install .` installs does everything from any folder, with the scripts of a checkout beside it."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from tests.support.tiny import REPO, write_corpus


UV = Path(sys.executable).with_name("uv")
PACKAGES = ("sightsound", "evaluation")
LOAD_METRICS = """
import sys
import evaluate
import evaluation, sightsound
for folder in sys.argv[1:]:
    metric = evaluate.load(folder)
    reference = 0 if folder.endswith("paper_protocol") else "two"
    given = {"predictions": ["two"], "references": [reference], "choices": [["two", "one"]]}
    print(metric.compute(**{name: given[name] for name in metric.features})["accuracy"])
print(evaluation.__file__, sightsound.__file__)
"""


def run(command: list[str | Path], folder: Path) -> str:
    """What a command prints that is run in a folder which holds no code of ours."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not UV.is_file():
        pytest.skip("uv builds the wheel; `make setup` installs it beside this Python")
    folder = tmp_path_factory.mktemp("wheel")
    # Offline: `make setup` has put hatchling into uv's cache.
    command = [UV, "build", "--quiet", "--offline", "--wheel", "--out-dir", folder, REPO]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("uv's cache holds no hatchling, which builds the wheel; run `make setup` with this cache")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The Python of an environment with the wheel, not editable.

    The dependencies are those of this environment: a `.pth` file adds their folder, and does not read the `.pth` of our
    editable install in it.
    """
    folder = tmp_path_factory.mktemp("installed") / "environment"
    run([UV, "venv", "--quiet", "--offline", "--python", sys.executable, folder], folder.parent)
    python = folder / "bin" / "python"
    run([UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel], folder.parent)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    files = {file.relative_to(REPO).as_posix() for package in PACKAGES for file in (REPO / package).rglob("*.*")}
    expected = {name for name in files if "__pycache__" not in name}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"sightsound/engines/prices.yaml", "sightsound/hub/templates/student.md", "evaluation/browse.html"} <= held


def test_templates_have_one_source() -> None:
    assert (REPO / "model_cards").resolve() == REPO / "sightsound" / "hub" / "templates"


@pytest.mark.slow  # `evaluate` takes long to import
def test_the_metrics_load_with_the_installed_package(installed: Path, elsewhere: Path) -> None:
    metrics = sorted(page.parent for page in (REPO / "evaluation" / "metrics").glob("*/README.md"))
    *accuracies, evaluation, sightsound = run([installed, "-c", LOAD_METRICS, *metrics], elsewhere).split()
    assert accuracies == ["100.0"] * len(metrics) and len(metrics) >= 3
    assert all(Path(file).is_relative_to(installed.parents[1]) for file in (evaluation, sightsound))


def test_a_builder_of_a_checkout_writes_its_card(installed: Path, tiny_world: Path, elsewhere: Path) -> None:
    script = REPO / "dataset_builders" / "avqa_audio.py"
    flags = ["--validation_annotations", tiny_world / "val_qa.json", "--media_dir", tiny_world / "clips"]
    run([installed, script, *flags, "--output_dir", "avqa-audio", "--num_proc", "1"], elsewhere)
    card = DatasetCard.load(elsewhere / "avqa-audio" / "README.md")
    assert card.data.pretty_name == "avqa-audio" and "| built | 4 |" in card.text
    assert "\npython dataset_builders/avqa_audio.py --validation_annotations val_qa.json" in card.text
    assert "(commit" not in card.text, "what is installed may be other code than the checkout's"


@pytest.mark.slow
def test_a_dry_run_counts_the_tokens(
    installed: Path, tiny_dataset: Path, tiny_world: Path, teacher_checkpoint: Path, elsewhere: Path
) -> None:
    script = REPO / "dataset_builders" / "traces.py"
    flags = ["--dataset", tiny_dataset, "--media_dir", tiny_world / "clips", "--model", teacher_checkpoint, "--dry_run"]
    assert "tokens" in run([installed, script, *flags, "--output_dir", "traces"], elsewhere)
    assert not (elsewhere / "traces").exists()


def test_the_evaluation_is_a_command_of_the_installed_package(
    installed: Path, tiny_dataset: Path, questions: list[dict[str, Any]], elsewhere: Path
) -> None:
    corpus = write_corpus(questions, elsewhere / "corpus")
    run(
        [installed, "-m", "evaluation", "browse", "--dataset", tiny_dataset, "--corpus", corpus, "--output_dir", "page"],
        elsewhere,
    )
    assert "<html" in (elsewhere / "page" / "index.html").read_text()

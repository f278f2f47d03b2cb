"""Cards: the README.md of a dataset, model or Space, its front matter and tables, and how the run was started."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound import __version__
from sightsound.data.clips import sha256_of
from sightsound.data.sources import shown_source
from sightsound.stage import write_atomically


if TYPE_CHECKING:
    from datasets import Features
    from huggingface_hub import CardData

TEMPLATES = Path(__file__).with_name("templates")
# The bytes of a dataset depend on these.
PACKAGES = ("datasets", "huggingface_hub", "pyarrow", "av", "torch", "torchaudio", "numpy", "soundfile")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")  # no flag takes a token, but a user may type one
SHOWN_AUDIO = "(FLAC, 16 kHz, mono)"  # stands for the bytes in a card's sample row
FUNNEL_FIGURE = "funnel.png"  # shown by the card of the corpus
TAKEDOWN_FILE = "takedown.txt"  # of a dataset from videos: what must not be in it


def render_card(template: str, **values: Any) -> str:
    """
    Render the text of a card. A value that the template names and the caller does not give is an error.

    Args:
        template (`str`): File name in `templates/` (`model_cards/` in the repository is a link to that folder).
        values: What the template names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # No HTML escapes: a card is Markdown, and the Hub sanitises it.
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(**values)


def save_card(folder: Path, data: CardData, text: str) -> None:
    """
    Write a README.md: front matter, then text.

    `RepoCard.save` of huggingface_hub does not write atomically; a finished README.md is what makes a folder a dataset.

    Args:
        folder (`Path`): Of the dataset, model or Space.
        data (`CardData`): The front matter (`DatasetCardData`, `ModelCardData` or `SpaceCardData`).
        text (`str`): The card below it.
    """
    write_atomically(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{text}")


def write_dataset_card(folder: Path, text: str, configs: dict[str, dict[str, str]], **metadata: Any) -> None:
    """
    Write the README.md that makes a folder a dataset repository. Write it last: `load_dataset(folder)` works from then on.

    Args:
        folder (`Path`): Holds the data files already.
        text (`str`): The card below its front matter.
        configs (`dict`): Config name to split to the glob of its files; the first config is the default.
        metadata: Further front matter (`license`, `tags`, ...).
    """
    from huggingface_hub import DatasetCardData

    described: list[dict[str, Any]] = []
    for name, splits in configs.items():
        files = [file for pattern in splits.values() for file in sorted(folder.glob(pattern))]
        # datasets 5.2 names the cache of a local folder after the folder's name and configs only. Without a digest here, a
        # rebuilt folder, or another folder of the same name, would be read from the old cache.
        digest = hashlib.sha256(b"".join(bytes.fromhex(sha256_of(str(file))) for file in files)).hexdigest()
        paths = [{"split": split, "path": pattern} for split, pattern in splits.items()]
        described.append({"config_name": name, "description": f"sha256 {digest}", "data_files": paths})
    described[0]["default"] = True
    save_card(folder, DatasetCardData(**metadata, configs=described), text)


def dataset_info(folder: Path, configs: dict[str, dict[str, str]], features: dict[str, Features]) -> Any:
    """
    The front matter's `dataset_info`: columns, rows and bytes of every config, as `push_to_hub` would write it.

    Args:
        folder (`Path`): Holds the data files already.
        configs (`dict`): As for `write_dataset_card`.
        features (`dict`): Columns of each config.
    """
    import pyarrow.parquet as pq
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from huggingface_hub import DatasetCardData

    infos = {}
    for config, splits in configs.items():
        files = {split: sorted(folder.glob(pattern)) for split, pattern in splits.items()}
        described = SplitDict()
        for split, paths in files.items():
            parts = [pq.read_metadata(path) for path in paths]
            groups = [part.row_group(i).total_byte_size for part in parts for i in range(part.num_row_groups)]
            described[split] = SplitInfo(split, num_bytes=sum(groups), num_examples=sum(part.num_rows for part in parts))
        infos[config] = DatasetInfo(
            features=features[config],
            splits=described,
            download_size=sum(path.stat().st_size for paths in files.values() for path in paths),
            dataset_size=sum(split.num_bytes for split in described.values()),
        )
    card = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(card)
    return card["dataset_info"]


def markdown_table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table. (No library of this project writes one: pandas needs `tabulate` for it.)"""

    def line(cells: Sequence[Any]) -> str:
        return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)

    return [line(head), "| --- " * len(head) + "|", *map(line, rows)]


def as_json(row: dict[str, Any]) -> str:
    """A row as a card shows it: columns in their order, text unescaped."""
    return json.dumps(row, indent=2, ensure_ascii=False)


def provenance(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """
    How this run was started and with which versions, for the card.

    The command is as it was typed, without tokens and without the folders of absolute paths.

    Args:
        packages (`Sequence[str]`): Distributions whose versions the card states.
    """
    versions = {"sightsound": f"{__version__}{_commit()}"} | {name: version(name) for name in packages}
    command = shlex.join(["python", _script(Path(sys.argv[0]).resolve()), *map(_without_folders, sys.argv[1:])])
    return {"command": TOKEN.sub("hf_...", command), "versions": versions}


def _script(path: Path) -> str:
    """A script as its own repository names it, wherever the package is installed: `dataset_builders/traces.py`."""
    repository = next((folder for folder in path.parents if (folder / "pyproject.toml").is_file()), path.parent)
    return path.relative_to(repository).as_posix()


def _without_folders(argument: str) -> str:
    """`PATH`, `--flag=PATH` or `NAME=PATH` with only the last part of an absolute path."""
    name, assigned, value = argument.rpartition("=")
    return f"{name}{assigned}{shown_source(value) if Path(value).is_absolute() else value}"


def _commit() -> str:
    """
    ` (commit ...)` where this code runs from a git checkout: all commits between two releases have one version.

    The commit has to contain this file. An installed package can lie in a checkout of something else, or in the `.venv` of
    this one while it holds older code.
    """
    if shutil.which("git") is None:
        return ""
    here = Path(__file__).resolve()
    command = ["git", "-C", str(here.parent), "rev-parse", "HEAD", f"HEAD:./{here.name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f" (commit {found.stdout.split()[0]})" if found.returncode == 0 else ""

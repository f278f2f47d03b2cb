"""What a published dataset or model says of itself: cards, rendered from `templates/`, and how the run was started."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound import __version__
from sightsound.data.clips import sha256_of
from sightsound.data.sources import shown_source
from sightsound.stage import write_atomically


if TYPE_CHECKING:
    from datasets import Features


# What the bytes of a dataset depend on.
PACKAGES = ("datasets", "huggingface_hub", "pyarrow", "av", "torch", "torchaudio", "numpy", "soundfile")


TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")  # nothing asks for one on the command line, but it may stand there


SHOWN_AUDIO = "(FLAC, 16 kHz, mono)"  # in a card's sample row


def dataset_info(folder: Path, configs: dict[str, dict[str, str]], features: dict[str, Features]) -> Any:
    """
    The front matter's `dataset_info`: columns, rows and bytes of every config, as `push_to_hub` would write it.

    Args:
        folder (`Path`): Holds the data files already.
        configs (`dict`): As for `hub.write_dataset_card`.
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


def provenance(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """
    How this run was started and on what, for the card.

    The command is as it was typed, but for tokens and for where absolute paths lead. The script is named as in the repository.
    """
    script, repo = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[2]
    shown = script.relative_to(repo).as_posix() if script.is_relative_to(repo) else script.name
    versions = {"sightsound": f"{__version__}{_commit(repo)}"} | {name: version(name) for name in packages}
    command = TOKEN.sub("hf_...", shlex.join(["python", shown, *map(_without_folders, sys.argv[1:])]))
    return {"command": command, "versions": versions}


def _without_folders(argument: str) -> str:
    """`PATH`, `--flag=PATH` or `NAME=PATH` with the last part of an absolute path alone."""
    name, assigned, value = argument.rpartition("=")
    return f"{name}{assigned}{shown_source(value) if Path(value).is_absolute() else value}"


def _commit(repo: Path) -> str:
    """` (commit ...)` where this is a checkout, since every commit until a release has one version."""
    if not (repo / ".git").exists() or shutil.which("git") is None:
        return ""
    found = subprocess.run(["git", "-C", str(repo), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return f" (commit {found.stdout.strip()})" if found.returncode == 0 else ""


def as_json(row: dict[str, Any]) -> str:
    """A row as the card shows it: columns in their order, text as it is."""
    return json.dumps(row, indent=2, ensure_ascii=False)


TEMPLATES = Path(__file__).with_name("templates")


FUNNEL_FIGURE = "funnel.png"  # shown by the card of the corpus


def render_card(template: str, **values: Any) -> str:
    """
    Render a card's text; a value that the template names and nobody gave is an error, not a blank.

    Args:
        template (`str`): File name in `model_cards/`.
        values: What the template names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Not HTML: a card is Markdown that the Hub sanitises.
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(**values)


def write_dataset_card(folder: Path, text: str, configs: dict[str, dict[str, str]], **metadata: Any) -> None:
    """
    Write the README.md that makes a folder a dataset repository, last: `load_dataset(folder)` works from then on.

    Args:
        folder (`Path`): Holds the data files already.
        text (`str`): The card below its front matter.
        configs (`dict`): Config name to split to the glob of its files; the first config is the default.
        metadata: Further front matter (`license`, `tags`, ...).
    """
    import yaml

    described: list[dict[str, Any]] = []
    for name, splits in configs.items():
        files = [file for pattern in splits.values() for file in sorted(folder.glob(pattern))]
        # datasets 5.2 caches a local folder under its name and its configs alone: without something here that changes
        # with the content, a rebuilt folder (or another one of that name) would be read from the old one's cache.
        digest = hashlib.sha256(b"".join(bytes.fromhex(sha256_of(str(file))) for file in files)).hexdigest()
        paths = [{"split": split, "path": pattern} for split, pattern in splits.items()]
        described.append({"config_name": name, "description": f"sha256 {digest}", "data_files": paths})
    described[0]["default"] = True
    front = yaml.safe_dump({**metadata, "configs": described}, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "README.md", f"---\n{front}---\n\n{text}")

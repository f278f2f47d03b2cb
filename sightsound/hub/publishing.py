"""What every builder of a published dataset has: the flags to publish it, and what its card says by itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound import __version__
from sightsound.cli import InputError
from sightsound.stage import write_atomically


if TYPE_CHECKING:
    from datasets import Features

# What the bytes of a dataset depend on.
PACKAGES = ("datasets", "huggingface_hub", "pyarrow", "av", "torch", "torchaudio", "numpy", "soundfile")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")  # nothing asks for one on the command line, but it may stand there
SHOWN_AUDIO = "(FLAC, 16 kHz, mono)"  # in a card's sample row


def split_revision(source: str) -> tuple[str, str | None]:
    """`ORG/NAME@REVISION` -> its parts; a folder, or an id alone, has no revision."""
    name, _, revision = source.partition("@")
    return (source, None) if Path(source).exists() or not revision else (name, revision)


def is_hub_id(source: str) -> bool:
    """Whether it has the form of a repository's id, with or without a revision, and is nothing on this machine."""
    name, _ = split_revision(source)
    return REPO_ID.fullmatch(name) is not None and not source.startswith(".") and not Path(source).exists()


def shown_source(source: str) -> str:
    """A Hub id or a server's name as it is; of a folder its name: where it lies on this machine is nobody's business."""
    path = Path(source)
    if is_hub_id(source) or (len(path.parts) == 1 and not path.exists()):
        return source
    return "/".join(path.resolve().parts[-2:] if path.name in ("model", "adapter") else path.resolve().parts[-1:])


@dataclass(kw_only=True)
class PublishArguments:
    push_to_hub: str | None = field(default=None, metadata={"help": "publish what was made as ORG/NAME"})
    private: bool = field(default=False, metadata={"help": "only to a repository that is private"})

    def __post_init__(self) -> None:
        # Now, and not after hours of building.
        if self.push_to_hub is not None and not REPO_ID.fullmatch(self.push_to_hub):
            raise InputError(f"--push_to_hub {self.push_to_hub}: expected ORG/NAME, such as my-lab/avqa-audio")
        if self.private and self.push_to_hub is None:
            raise InputError("--private says how to publish; give --push_to_hub ORG/NAME as well")
        if self.push_to_hub is not None and self.push_to_hub == os.path.normpath(getattr(self, "output_dir", "")):
            raise InputError(
                f"--output_dir {self.push_to_hub} is named like the repository: load_dataset would read that folder"
            )

    def publish(self, folder: Path) -> None:
        """Upload a finished dataset folder, if that was asked for."""
        if self.push_to_hub is not None:
            from sightsound.hub.publish import publish_dataset

            card = folder / "README.md"
            if card.is_file():  # its lines that load the dataset name the folder until then
                named = f'load_dataset("{self.push_to_hub}"'
                write_atomically(card, re.sub(r'load_dataset\("[^"]*"', named, card.read_text(encoding="utf-8")))
            revision = publish_dataset(folder, self.push_to_hub, self.private)
            print(f"published: {self.push_to_hub}, revision {revision}")

    def publish_student(self, folder: Path) -> None:
        """
        Upload what a training recipe has finished: `model/`, and `adapter/` to a repository of its own beside it.

        In one repository, transformers would find the adapter's config first. An adapter on a base that is in a folder here is
        not sent: nobody else could load it.
        """
        self.publish_model(folder / "model")
        config = folder / "adapter" / "adapter_config.json"
        if self.push_to_hub is None or not config.is_file():
            return
        base = json.loads(config.read_text())["base_model_name_or_path"]
        if not is_hub_id(base):
            print(f"adapter/ stays here: its base {base} is no model of the Hub")
        else:
            replace(self, push_to_hub=f"{self.push_to_hub}-adapter").publish_model(folder / "adapter")

    def publish_model(self, folder: Path) -> None:
        """Upload a finished checkpoint folder, if that was asked for."""
        if self.push_to_hub is not None:
            from sightsound.hub.publish import publish_model

            revision = publish_model(folder, self.push_to_hub, self.private)
            print(f"published: {self.push_to_hub}, revision {revision}")


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

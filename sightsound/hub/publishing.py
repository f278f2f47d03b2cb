"""What every builder of a published dataset has: the flags to publish it, and what its card says by itself."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from sightsound.cli import InputError
from sightsound.data.sources import REPO_ID, is_hub_id
from sightsound.stage import write_atomically


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

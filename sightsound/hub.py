"""What a published artefact says of itself: cards, rendered from `model_cards/`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from .journal import write_atomically


TEMPLATES = Path(__file__).resolve().parents[1] / "model_cards"


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
        digest = hashlib.sha256(b"".join(_digest(file) for file in files)).hexdigest()
        paths = [{"split": split, "path": pattern} for split, pattern in splits.items()]
        described.append({"config_name": name, "description": f"sha256 {digest}", "data_files": paths})
    described[0]["default"] = True
    front = yaml.safe_dump({**metadata, "configs": described}, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "README.md", f"---\n{front}---\n\n{text}")


def _digest(file: Path) -> bytes:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").digest()

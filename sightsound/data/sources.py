"""How inputs are named: a folder here, or a repository of the Hub at a revision."""

from __future__ import annotations

import re
from pathlib import Path


REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


def split_revision(source: str) -> tuple[str, str | None]:
    """`ORG/NAME@REVISION` -> its parts; a folder, or an id alone, has no revision."""
    name, _, revision = source.partition("@")
    return (source, None) if Path(source).exists() or not revision else (name, revision)


def is_hub_id(source: str) -> bool:
    """Whether it has the form of a repository id, with or without a revision, and is no path on this machine."""
    name, _ = split_revision(source)
    return REPO_ID.fullmatch(name) is not None and not source.startswith(".") and not Path(source).exists()


def shown_source(source: str) -> str:
    """A source for a card: a Hub id or a server's name unchanged, a folder without the path above it."""
    path = Path(source)
    if is_hub_id(source) or (len(path.parts) == 1 and not path.exists()):
        return source
    return "/".join(path.resolve().parts[-2:] if path.name in ("model", "adapter") else path.resolve().parts[-1:])

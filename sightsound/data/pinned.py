"""Official annotation files that are known by their bytes: whether a file is the one that figures are compared on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import sha256_of


TEXTS = ("id", "video_question", "choices", "answer_text")


def texts_digest(rows: Iterable[dict[str, Any]]) -> str:
    """sha256 of what rows ask and of what is right, in any order."""
    texts = sorted(json.dumps([row[name] for name in TEXTS]) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@dataclass(frozen=True)
class PinnedFile:
    """
    One official annotation file.

    Args:
        source (`str`): Path, repository and commit.
        sha256 (`str` or `None`): None where upstream lets it be known by name only; then every file passes.
        questions (`int` or `None`): How many it holds; None where that is not known either.
        difference (`Callable` or `None`): What another file holds, and its sha256 -> how it differs.
        texts_sha256 (`str` or `None`): `texts_digest` of its rows, by which a dataset that was built from it is known.
    """

    source: str
    sha256: str | None = None
    questions: int | None = None
    difference: Callable[[Any, str], str] | None = None
    texts_sha256: str | None = None

    def check(self, path: str, annotations: Any, allow_unpinned: bool) -> str:
        """
        What a card says of a file.

        Args:
            path (`str`): The file.
            annotations (`Any`): What it holds.
            allow_unpinned (`bool`): Take another one too.

        Raises:
            `InputError`: It is another one and that was not allowed.
        """
        sha256 = sha256_of(path)
        if self.sha256 is None:
            return f"{self.source}, as far as its name tells"
        if sha256 == self.sha256:
            return f"the pinned file: {self.source}, unchanged"
        told = f": {self.difference(annotations, sha256)}" if self.difference else ""
        if not allow_unpinned:
            raise InputError(
                f"{path} is not {self.source}{told} (sha256 {self.sha256[:12]}... expected, {sha256[:12]}... found); download "
                "that file, or give --allow_unpinned and say in what you publish which file it was"
            )
        print(f"warning: {path} is NOT {self.source}{told}; figures are not comparable", file=sys.stderr)
        return f"NOT the pinned file ({self.source}){told}; figures are not comparable"

    def asks(self, rows: Iterable[dict[str, Any]]) -> bool | None:
        """Whether these rows are all of its questions; None where they are fewer or more, or where that cannot be known."""
        rows = list(rows)
        return None if self.texts_sha256 is None or len(rows) != self.questions else texts_digest(rows) == self.texts_sha256

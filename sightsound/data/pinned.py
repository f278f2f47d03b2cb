"""Official annotation files that are identified by their bytes, so that figures are compared on the same questions."""

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
    """sha256 of the questions, choices and right answers of rows, in any order."""
    texts = sorted(json.dumps([row[name] for name in TEXTS]) for row in rows)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@dataclass(frozen=True)
class PinnedFile:
    """
    One official annotation file.

    Args:
        source (`str`): Path, repository and commit.
        sha256 (`str`, *optional*): None if no checksum is published; every file is then accepted.
        questions (`int`, *optional*): Number of questions in the file; None where it is unknown.
        difference (`Callable`, *optional*): Content and sha256 of another file -> how it differs.
        texts_sha256 (`str`, *optional*): `texts_digest` of its rows; it identifies a dataset that was built from the file.
    """

    source: str
    sha256: str | None = None
    questions: int | None = None
    difference: Callable[[Any, str], str] | None = None
    texts_sha256: str | None = None

    def check(self, path: str, annotations: Any, allow_unpinned: bool) -> str:
        """
        Compare a file with the pinned one.

        Args:
            path (`str`): The file.
            annotations (`Any`): Its content.
            allow_unpinned (`bool`): Accept another file, with a warning.

        Returns:
            `str`: Which file it is, for the card.

        Raises:
            `InputError`: It is another file, and `allow_unpinned` is false.
        """
        sha256 = sha256_of(path)
        if self.sha256 is None:
            return f"{self.source} (identified by name only; no checksum is published)"
        if sha256 == self.sha256:
            return f"the pinned file: {self.source}, unchanged"
        difference = f": {self.difference(annotations, sha256)}" if self.difference else ""
        if not allow_unpinned:
            raise InputError(
                f"{path} is not {self.source}{difference} (sha256 {self.sha256[:12]}... expected, {sha256[:12]}... found); "
                "download that file, or give --allow_unpinned and say in what you publish which file it was"
            )
        print(f"warning: {path} is NOT {self.source}{difference}; figures are not comparable", file=sys.stderr)
        return f"NOT the pinned file ({self.source}){difference}; figures are not comparable"

    def asks(self, rows: Iterable[dict[str, Any]]) -> bool | None:
        """Whether the rows are the pinned questions. None if their number differs or no digest is known."""
        rows = list(rows)
        return None if self.texts_sha256 is None or len(rows) != self.questions else texts_digest(rows) == self.texts_sha256

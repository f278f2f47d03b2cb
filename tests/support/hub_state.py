"""What a Hub keeps of a repository: commits, refs, pull requests and how they are merged; and what it answers."""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True)
class Entry:
    """A file of a commit: git's blob id, and the sha256 of its content when that is in LFS."""

    oid: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Commit:
    parent: str | None
    tree: dict[str, Entry]
    title: str
    date: str


@dataclass
class Pull:
    num: int
    title: str
    author: str
    status: str = "draft"  # as the Hub makes those that a program opens
    merged: str | None = None


@dataclass
class Repo:
    private: bool
    gated: bool = False  # its files can be listed by all, and read by its owner only
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)

    def resolve(self, revision: str) -> str:
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.refs[name]
        if revision not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision

    def tree(self, revision: str = "main") -> dict[str, Entry]:
        return self.commits[self.resolve(revision)].tree

    def history(self, revision: str) -> list[str]:
        shas = [self.resolve(revision)]
        while parent := self.commits[shas[-1]].parent:
            shas.append(parent)
        return shas

    def add(self, ref: str, parent: str | None, tree: dict[str, Entry], title: str) -> str:
        sha = hashlib.sha1(secrets.token_bytes(20)).hexdigest()
        self.commits[sha] = Commit(parent, tree, title, now())
        self.refs[ref] = sha
        return sha

    def merge(self, pull: Pull) -> None:
        """As git does: changes on both sides that do not touch the same files are combined."""
        main, theirs = self.resolve("main"), self.resolve(f"refs/pr/{pull.num}")
        base = self.tree(next(sha for sha in self.history(main) if sha in self.history(theirs)))
        ours, proposed = self.tree(main), self.tree(theirs)
        changed = {path for path in base.keys() | proposed.keys() if base.get(path) != proposed.get(path)}
        if any(ours.get(path) not in (base.get(path), proposed.get(path)) for path in changed):
            raise Refusal(409, "This pull request has conflicts with main")
        merged = {path: proposed.get(path) if path in changed else ours.get(path) for path in ours.keys() | proposed.keys()}
        tree = {path: entry for path, entry in sorted(merged.items()) if entry is not None}
        pull.status, pull.merged = "merged", self.add("refs/heads/main", main, tree, f"{pull.title} (#{pull.num})")


@dataclass
class Collection:
    slug: str
    title: str
    owner: str
    private: bool
    items: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        items = [{"_id": f"{i:024x}", "position": i, **item} for i, item in enumerate(self.items)]
        about = {"slug": self.slug, "title": self.title, "owner": self.owner, "private": self.private, "items": items}
        return about | {"lastUpdated": now(), "position": 0, "theme": "green", "upvotes": 0}


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        self.status, self.headers, self.body = status, {"X-Error-Message": message, **named}, {"error": message, **body}


@dataclass(frozen=True)
class Answer:
    content: bytes | dict | list = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

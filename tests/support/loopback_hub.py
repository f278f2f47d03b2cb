"""
A Hugging Face Hub on loopback, for the real clients (`huggingface_hub`, `datasets`, `hf_xet`) over HTTP.

It proves that what the clients and `sightsound.hub` send is well-formed and in the right order, that a change of `main` is one
change, and what happens when requests fail, are lost, or the client is killed between any two of them. It does *not* prove
how the real Hub words and numbers its refusals, how long after a write every replica reads it, its limits of rate and size,
multipart uploads, the review of a pull request by people, gated repositories, or anything of the dataset viewer. Parquet files
and everything above 10 MB are stored as LFS whatever `.gitattributes` says. Everything is in memory.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from tests.support.xet_cas import XetCas


TOKEN = "hf_loopbackWriterCanary"
STRANGER = "hf_loopbackStranger"  # a valid token of somebody who may write nowhere here
USERS = {TOKEN: "alice", STRANGER: "mallory"}
REGULAR_MAX = 10 << 20
REPO = Path(__file__).resolve().parents[2]

# What a fault can do besides a status: close without an answer before or after the request took effect, change a byte.
DROP, LOSE, FLIP = "drop", "lose", "flip"


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
        self.commits[sha] = Commit(parent, tree, title, _now())
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


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        self.status, self.headers, self.body = status, {"X-Error-Message": message, **named}, {"error": message, **body}


@dataclass
class Fault:
    """The next `times` requests that match, after `skip` of them, meet `what`: an HTTP status, or one of the words above."""

    method: str
    path: str  # regular expression, searched in path and query
    what: int | str
    times: int = 1
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None  # what somebody else does just then; or a delay


@dataclass
class Request:
    method: str
    path: str
    agent: str = ""
    status: int | str = 0  # 0 while it is on its way


@dataclass(frozen=True)
class Answer:
    content: bytes | dict | list = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class LoopbackHub:
    """
    Serve while the `with` block lasts; two ports, since the real storage is another host that must not see the Hub's token.

    Attributes:
        log (`list[Request]`): Everything that was asked, in order of arrival.
        faults (`list[Fault]`): May be added to at any time.
        watch: Called as `watch(number, moment, request)` when a request is "asked" and when it took effect but is not
            yet "answered"; whatever it does happens just then.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.cas = XetCas()
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.watch: Callable[[int, str, Request], None] = lambda *_: None
        self.lock = threading.RLock()
        self._key = secrets.token_hex(8)
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        # Another name, or the client would take the storage for a part of the Hub.
        hosts = zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        self.url, self.storage = (f"http://{host}:{server.server_port}" for host, server in hosts)

    def __enter__(self) -> "LoopbackHub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def count(self, method: str, path: str) -> int:
        return sum(asked.method == method and bool(re.search(path, asked.path)) for asked in self.log)

    def content(self, entry: Entry) -> bytes:
        return self.objects[entry.sha256] if entry.sha256 else self.blobs[entry.oid]

    def change(self, repo_id: str, files: dict[str, bytes]) -> None:
        """Commit files to main of a dataset, as somebody else; made, and private, where there is none."""
        with self.lock:
            name = f"datasets/{repo_id}"
            repo = self.repos[name] if name in self.repos else self.new_repo(name, private=True)
            tree = repo.tree() | {path: self._store(path, content) for path, content in files.items()}
            repo.add("refs/heads/main", repo.resolve("main"), dict(sorted(tree.items())), "somebody else's change")

    def new_repo(self, name: str, private: bool) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.add("refs/heads/main", None, {".gitattributes": self._blob(b"*.parquet filter=lfs\n")}, "initial commit")
        return repo

    def _store(self, path: str, content: bytes) -> Entry:
        if not path.endswith(".parquet"):
            return self._blob(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return self.pointer(sha256, len(content))

    def pointer(self, sha256: str, size: int) -> Entry:
        return Entry(hashlib.sha1(f"pointer to {sha256}".encode()).hexdigest(), size, sha256)

    def _blob(self, content: bytes) -> Entry:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return Entry(oid, len(content))

    def _signature(self, sha256: str) -> str:
        return hashlib.sha256(f"{self._key} {sha256}".encode()).hexdigest()[:16]

    def signed(self, sha256: str) -> str:
        return f"{self.storage}/storage/{sha256}?signature={self._signature(sha256)}"

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def answer(self, http: "_Handler", body: bytes) -> Answer:
        path = unquote(urlsplit(http.path).path)
        for method, pattern, handle in ROUTES:
            if method == http.command and (match := re.fullmatch(pattern, path)):
                with self.lock:
                    return handle(self, _Call(http, body, match))
        raise Refusal(404, f"nothing at {http.command} {path}")


class _Call:
    """One request, with what the routes ask of it."""

    def __init__(self, http: "_Handler", body: bytes, match: re.Match):
        self.hub, self.headers, self.body, self.match = http.hub, http.headers, body, match
        self.query = dict(parse_qsl(urlsplit(http.path).query))
        self.token = (http.headers.get("Authorization") or "").removeprefix("Bearer ")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def user(self) -> str | None:
        if self.token and self.token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS.get(self.token)

    def repo(self, write: bool = False) -> Repo:
        """A private repository looks missing to everybody but its owner."""
        user, repo = self.user(), self.hub.repos.get(f"{self.match['kind']}/{self.match['repo']}")
        owner = user is not None and self.match["repo"].startswith(f"{user}/")
        if repo is None or (repo.private and not owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise Refusal(403 if user else 401, "You are not allowed to write to this repository")
        return repo

    def pull(self, write: bool = False) -> Pull:
        pulls = self.repo(write).pulls
        if not 0 < (num := int(self.match["num"])) <= len(pulls):
            raise Refusal(404, "no such discussion")
        return pulls[num - 1]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


# Accounts and repositories


def _whoami(hub: LoopbackHub, call: _Call) -> Answer:
    if (user := call.user()) is None:
        raise Refusal(401, "Invalid username or password.")
    return Answer({"type": "user", "name": user, "fullname": user, "orgs": []})


def _create_repo(hub: LoopbackHub, call: _Call) -> Answer:
    user, asked = call.user(), call.json
    owner = asked.get("organization") or user
    name = f"{asked['type']}s/{owner}/{asked['name']}"
    if user is None or owner != user:
        raise Refusal(403 if user else 401, f"You don't have the rights to create a {asked['type']} under {owner}")
    if name in hub.repos:
        raise Refusal(409, f"You already created {name}", url=f"{hub.url}/{name}")
    hub.new_repo(name, private=asked.get("visibility") == "private")
    return Answer({"url": f"{hub.url}/{name}", "name": f"{owner}/{asked['name']}"})


def _info(hub: LoopbackHub, call: _Call) -> Answer:
    repo = call.repo()
    sha = repo.resolve(call.match.groupdict().get("rev") or "main")
    commit = repo.commits[sha]
    about = {"id": call.match["repo"], "sha": sha, "private": repo.private, "lastModified": commit.date, "tags": []}
    flags = {"gated": False, "disabled": False, "downloads": 0, "likes": 0}
    return Answer({"_id": sha[:24], **about, **flags, "siblings": [{"rfilename": path} for path in commit.tree]})


def _rows(hub: LoopbackHub, tree: dict[str, Entry]) -> list[dict[str, Any]]:
    """Files and the folders above them, as the Hub lists them."""
    rows: dict[str, dict[str, Any]] = {}
    for path, entry in tree.items():
        for folder in list(Path(path).parents)[:-1]:
            oid = hashlib.sha1(str(folder).encode()).hexdigest()
            rows[str(folder)] = {"type": "directory", "path": str(folder), "oid": oid, "size": 0}
        rows[path] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.sha256:
            rows[path]["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
            if name := hub.cas.names.get(entry.sha256):
                rows[path]["xetHash"] = name
    return [rows[path] for path in sorted(rows)]


def _tree(hub: LoopbackHub, call: _Call) -> Answer:
    repo, below = call.repo(), call.match["path"]
    rows = [row for row in _rows(hub, repo.tree(call.match["rev"])) if not below or row["path"].startswith(f"{below}/")]
    if below and not rows:
        raise Refusal(404, f"{below} does not exist", "EntryNotFound")
    if call.query.get("recursive", "").lower() != "true":
        depth = below.count("/") + 1 if below else 0
        rows = [row for row in rows if row["path"].count("/") == depth]
    return Answer(rows)


def _paths_info(hub: LoopbackHub, call: _Call) -> Answer:
    repo = call.repo()
    if "json" in call.headers.get("Content-Type", ""):
        paths = call.json["paths"]
    else:
        paths = [value for name, value in parse_qsl(call.body.decode()) if name == "paths"]
    return Answer([row for row in _rows(hub, repo.tree(call.match["rev"])) if row["path"] in paths])


def _refs(hub: LoopbackHub, call: _Call) -> Answer:
    listed: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
    for ref, sha in call.repo().refs.items():
        kind = {"heads": "branches", "tags": "tags"}.get(ref.split("/")[1])
        if kind:
            listed[kind].append({"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": sha})
    return Answer(listed)


def _tag(hub: LoopbackHub, call: _Call) -> Answer:
    repo, ref = call.repo(write=True), f"refs/tags/{call.json['tag']}"
    if ref in repo.refs:
        raise Refusal(409, "Tag reference exists already")
    repo.refs[ref] = repo.resolve(call.match["rev"])
    return Answer({})


def _resolve(hub: LoopbackHub, call: _Call) -> Answer:
    repo = call.repo()
    sha = repo.resolve(call.match["rev"])
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    entry = repo.tree(sha).get(call.match["path"])
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    if entry.sha256 is None:
        return Answer(hub.content(entry), headers=headers | {"ETag": f'"{entry.oid}"'})
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size), "Location": hub.signed(entry.sha256)}
    if name := hub.cas.names.get(entry.sha256):
        route = f"{hub.url}/api/{call.match['kind']}/{call.match['repo']}/xet-read-token/{sha}"
        headers |= {"X-Xet-Hash": name, "Link": f'<{route}>; rel="xet-auth"'}
    return Answer(status=302, headers=headers)


# Writing


def _preupload(hub: LoopbackHub, call: _Call) -> Answer:
    repo = call.repo(write=True)
    ignored = hub.content(repo.tree()[".gitignore"]).decode().split() if ".gitignore" in repo.tree() else []
    files = []
    for asked in call.json["files"]:
        path, old = asked["path"], repo.tree(call.match["rev"]).get(asked["path"])
        large = path.endswith(".parquet") or asked["size"] > REGULAR_MAX
        told = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": path in ignored}
        files.append(told | ({"oid": old.sha256 or old.oid} if old else {}))
    return Answer({"files": files})


def _lfs_batch(hub: LoopbackHub, call: _Call) -> Answer:
    call.repo(write=True)
    objects = []
    for asked in call.json["objects"]:
        upload = {"upload": {"href": hub.signed(asked["oid"])}}
        objects.append(asked if asked["oid"] in hub.objects else asked | {"actions": upload})
    return Answer({"transfer": "basic", "objects": objects})


def _storage(hub: LoopbackHub, call: _Call) -> Answer:
    """Whoever has the signed address may read or write; a token has no business here."""
    sha256 = call.match["sha256"]
    if call.query.get("signature") != hub._signature(sha256) or call.token:
        raise Refusal(403, "bad signature" if not call.token else "a token was sent to the storage")
    if call.match.string and call.body:
        if hashlib.sha256(call.body).hexdigest() != sha256:
            raise Refusal(400, "these bytes have another sha256")
        hub.objects[sha256] = call.body
        return Answer()
    return Answer(hub.objects[sha256], headers={"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _commit(hub: LoopbackHub, call: _Call) -> Answer:
    repo, lines = call.repo(write=True), [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    target = call.match["rev"] if call.match["rev"].startswith("refs/") else f"refs/heads/{call.match['rev']}"
    head, parent = repo.resolve(target), header.get("parentCommit")
    propose = call.query.get("create_pr") == "1"
    if parent and parent != head and not propose:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    parent = repo.resolve(parent or head)
    tree = dict(repo.tree(parent))
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            tree[value["path"]] = hub._blob(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refusal(400, f"{value['path']} points to an object that was not uploaded")
            tree[value["path"]] = hub.pointer(value["oid"], value["size"])
        elif line["key"] == "deletedFile" and tree.pop(value["path"], None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    told = {}
    if propose:
        repo.pulls.append(pull := Pull(len(repo.pulls) + 1, header["summary"], str(call.user())))
        target = f"refs/pr/{pull.num}"
        told["pullRequestUrl"] = f"{hub.url}/{call.match['kind']}/{call.match['repo']}/discussions/{pull.num}"
    sha = repo.add(target, parent, dict(sorted(tree.items())), header["summary"])
    url = f"{hub.url}/{call.match['kind']}/{call.match['repo']}/commit/{sha}"
    return Answer({"success": True, "commitOid": sha, "commitUrl": url, **told})


# Pull requests


def _about(call: _Call, pull: Pull) -> dict[str, Any]:
    about = {"num": pull.num, "title": pull.title, "status": pull.status, "author": {"name": pull.author}}
    repo = {"name": call.match["repo"], "type": call.match["kind"].removesuffix("s")}
    return about | {"isPullRequest": True, "createdAt": _now(), "repo": repo}


def _discussions(hub: LoopbackHub, call: _Call) -> Answer:
    pulls = [pull for pull in call.repo().pulls if call.query.get("author") in (None, pull.author)]
    return Answer({"discussions": [_about(call, pull) for pull in pulls], "count": len(pulls), "start": 0})


def _discussion(hub: LoopbackHub, call: _Call) -> Answer:
    pull = call.pull()
    changes = {"base": "refs/heads/main", "mergeCommitId": pull.merged}
    return Answer(_about(call, pull) | {"events": [], "diff": "", "filesWithConflicts": [], "changes": changes})


def _set_status(hub: LoopbackHub, call: _Call) -> Answer:
    pull = call.pull(write=True)
    if pull.status == "merged":
        raise Refusal(400, "This pull request is merged")
    pull.status = call.json["status"]
    event = {"id": "1", "type": "status-change", "createdAt": _now(), "author": {"name": pull.author}}
    return Answer({"newStatus": event | {"data": {"status": pull.status}}})


def _merge(hub: LoopbackHub, call: _Call) -> Answer:
    pull = call.pull(write=True)
    if pull.status != "open":
        raise Refusal(400, f"This pull request is {pull.status}")
    call.repo().merge(pull)
    return Answer({})


# Xet


def _xet_token(hub: LoopbackHub, call: _Call) -> Answer:
    call.repo(write=call.match["mode"] == "write").resolve(call.match["rev"])
    expiry = int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": hub.storage, "X-Xet-Access-Token": hub._key, "X-Xet-Token-Expiration": str(expiry)}
    return Answer({"accessToken": hub._key, "exp": expiry, "casUrl": hub.storage}, headers=headers)


def _xorb(hub: LoopbackHub, call: _Call) -> Answer:
    if call.body:
        hub.cas.xorbs[call.match["hash"]] = call.body
        return Answer({"was_inserted": True})
    return Answer(hub.cas.xorbs[call.match["hash"]], headers={"Accept-Ranges": "bytes"})


def _shard(hub: LoopbackHub, call: _Call) -> Answer:
    try:
        hub.objects |= hub.cas.add_shard(call.body)
    except (KeyError, ValueError) as error:
        raise Refusal(400, f"bad shard: {error}") from error
    return Answer({"result": 1})


def _reconstruction(hub: LoopbackHub, call: _Call) -> Answer:
    told = hub.cas.reconstruction(call.match["hash"], call.headers.get("Range"), f"{hub.storage}/xorb")
    return Answer(told) if told else Answer(status=416)


API = r"/api/(?P<kind>datasets)/(?P<repo>[^/]+/[^/]+)"
WEB = r"/(?P<kind>datasets)/(?P<repo>[^/]+/[^/]+?)"
REV = r"(?P<rev>refs/pr/\d+|[^/]+)"
HASH = r"(?P<hash>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, Callable[[LoopbackHub, _Call], Answer]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/repos/create", _create_repo),
    ("POST", "/api/validate-yaml", lambda hub, call: Answer({"errors": [], "warnings": []})),
    ("GET", API, _info),
    ("GET", f"{API}/revision/{REV}", _info),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.+))?", _tree),
    ("POST", f"{API}/paths-info/{REV}", _paths_info),
    ("GET", f"{API}/refs", _refs),
    ("POST", f"{API}/tag/{REV}", _tag),
    ("POST", f"{API}/preupload/{REV}", _preupload),
    ("POST", f"{API}/commit/{REV}", _commit),
    ("GET", f"{API}/discussions", _discussions),
    ("GET", API + r"/discussions/(?P<num>\d+)", _discussion),
    ("POST", API + r"/discussions/(?P<num>\d+)/status", _set_status),
    ("POST", API + r"/discussions/(?P<num>\d+)/merge", _merge),
    ("GET", f"{API}/xet-(?P<mode>read|write)-token/{REV}", _xet_token),
    ("POST", rf"{WEB}\.git/info/lfs/objects/batch", _lfs_batch),
    ("HEAD", f"{WEB}/resolve/{REV}/(?P<path>.+)", _resolve),
    ("GET", f"{WEB}/resolve/{REV}/(?P<path>.+)", _resolve),
    ("GET", "/storage/(?P<sha256>[0-9a-f]{64})", _storage),
    ("PUT", "/storage/(?P<sha256>[0-9a-f]{64})", _storage),
    ("POST", f"/v1/xorbs/default/{HASH}", _xorb),
    ("GET", f"/xorb/{HASH}", _xorb),
    ("POST", "/v1/shards", _shard),
    ("GET", f"/v1/reconstructions/{HASH}", _reconstruction),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that is killed is what these tests are about
            super().handle()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        content = self.rfile.read(size := int(self.headers.get("Content-Length") or 0))
        if len(content) < size:
            raise ConnectionError("the client went away")
        return content

    def _serve(self) -> None:
        body = self._body()
        fault = self.hub.fault(self.command, self.path) or Fault("", "", 200)
        request = Request(self.command, self.path, self.headers.get("User-Agent", ""))
        with self.hub.lock:
            self.hub.log.append(request)
            number = len(self.hub.log)
        self.hub.watch(number, "asked", request)
        if fault.before:
            fault.before()
        if fault.what == DROP:
            request.status, self.close_connection = DROP, True
            return
        try:
            if isinstance(fault.what, int) and fault.what != 200:
                raise Refusal(fault.what, "fault")
            answer = self.hub.answer(self, body)
        except Refusal as refusal:
            answer = Answer(refusal.body, refusal.status, refusal.headers | fault.headers)
        request.status = answer.status
        self.hub.watch(number, "answered", request)
        if fault.what == LOSE:
            request.status, self.close_connection = LOSE, True
            return
        self._send(answer, flip=fault.what == FLIP)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, answer: Answer, flip: bool) -> None:
        content, status, headers = answer.content, answer.status, dict(answer.headers)
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
        if flip and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if match and status == 200 and "Accept-Ranges" in headers:
            size, (first, last) = len(content), match.groups()
            start = int(first) if first else size - int(last)
            end = min(int(last), size - 1) if first and last else size - 1
            status, content = 206, content[start : end + 1]
            headers |= {"Content-Range": f"bytes {start}-{end}/{size}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


# Clients in processes of their own: `huggingface_hub` reads HF_ENDPOINT and HF_HUB_OFFLINE once, when it is imported.


@pytest.fixture
def loopback_hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def client_environment(hub: LoopbackHub, home: Path, token: str | None = TOKEN, xet: bool = False) -> dict[str, str]:
    """What a client needs to talk to this Hub and to nothing else; nothing of the surrounding `HF_*` gets through."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    own |= {"HF_HUB_DISABLE_XET": "0" if xet else "1", "PYTHONPATH": str(REPO), "TMPDIR": str(home), "NO_PROXY": "*"}
    own |= {"USE_TORCH": "0"}  # `datasets` would import it, a second for nothing
    return kept | own | ({"HF_TOKEN": token} if token else {})


@contextmanager
def client(code: str, arguments: list[Any], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run Python code with the real clients; killed when the block is left."""
    Path(environment["HF_HOME"]).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def process_arguments() -> set[str]:
    """What every process of this machine was started with: anybody who is logged in can read it."""
    seen = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # that process ended just now
            seen.add(file.read_text(errors="replace"))
    return seen

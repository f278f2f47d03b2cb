"""
A Hugging Face Hub on loopback, for the real clients (`huggingface_hub`, `datasets`, `hf_xet`) over HTTP.

It proves that what the clients and our publishing send is well-formed and in the right order, that a change of `main` is one
change, and what happens when requests fail, are lost, or the client is killed between any two of them. It does *not* prove
how the real Hub words and numbers its refusals, how long after a write every replica reads it, its limits of rate and size,
multipart uploads, the review of a pull request by people, gated repositories, or anything of the dataset viewer. Parquet files
and everything above 10 MB are stored as LFS whatever `.gitattributes` says. Everything is in memory.
"""

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.hub_routes import ROUTES, TOKEN, Call
from tests.support.hub_state import Answer, Collection, Entry, Refusal, Repo
from tests.support.xet_cas import XetCas


REPO = Path(__file__).resolve().parents[2]

# What a fault can do besides a status: close without an answer before or after the request took effect, change a byte.
DROP, LOSE, FLIP = "drop", "lose", "flip"


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
    sent: int = 0  # bytes of the answer


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
        self.collections: dict[str, Collection] = {}
        self.blobs: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.cas = XetCas()
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.watch: Callable[[int, str, Request], None] = lambda *_: None
        self.lock = threading.RLock()
        self._key = secrets.token_hex(8)
        handler = type("Handler", (Handler,), {"hub": self})
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

    def sent(self, path: str) -> dict[str, int]:
        """How many bytes of the answers to GET were sent, by path, of those that match."""
        found: dict[str, int] = {}
        for asked in self.log:
            place = urlsplit(asked.path).path
            if asked.method == "GET" and re.search(path, place):
                found[place] = found.get(place, 0) + asked.sent
        return found

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

    def answer(self, http: "Handler", body: bytes) -> Answer:
        path = unquote(urlsplit(http.path).path)
        for method, pattern, handle in ROUTES:
            if method == http.command and (match := re.fullmatch(pattern, path)):
                with self.lock:
                    return handle(self, Call(http, body, match))
        raise Refusal(404, f"nothing at {http.command} {path}")


class Handler(BaseHTTPRequestHandler):
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
        request.sent = self._send(answer, flip=fault.what == FLIP)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, answer: Answer, flip: bool) -> int:
        """Returns the number of bytes of the content."""
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
        return 0 if self.command == "HEAD" else len(content)


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

"""
A loopback server with OpenAI's files and batches, and `POST /v1/chat/completions` that answers the same body alike.

It proves that the client speaks the Batch API as the `openai` package describes it, and that nothing is paid twice: every
answered line is billed when its batch is made, whether anybody fetches it or not. It does not prove how OpenAI's own servers
schedule, list or fail.
"""

import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


# In place of a status code: close the connection before the request is handled, or instead of the answer to it.
DROPPED, UNHEARD = "dropped", "unheard"
# Of a request: it came, it is handled, it is answered.
MOMENTS = ("before", "handled", "answered")
MAX_CUSTOM_ID = 64
KEYS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True)
class Plan:
    """
    What becomes of one batch.

    Args:
        end (`str`): Its last status.
        num_begun (`int`, *optional*): Lines begun before it expired or was cancelled; all when None.
        statuses (`dict`): Line -> HTTP status of its response in the error file; `"timeout"` for an error without a response.
        garbled (`set`): Lines answered with a body that is no chat completion.
        dropped (`set`): Lines that are in neither file.
        doubled (`bool`): Every line of the output twice, with a line of somebody else's and half a line.
        errors (`list`): For a batch that fails: `{"code", "message", "line"}`.
    """

    end: str = "completed"
    num_begun: int | None = None
    statuses: dict[int, int | str] = field(default_factory=dict)
    garbled: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    doubled: bool = False
    errors: tuple[dict[str, Any], ...] = ()


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """An answer that changes with anything in the request: yes, no or neither, and a word of its own."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    texts = [f"{('yes', 'no', 'perhaps')[each % 3]} {digest.hex()}" for each in digest[: body["n"]]]
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for i, text in enumerate(texts)
    ]
    return {"object": "chat.completion", "choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 3}}


class BatchServer:
    """
    Serve while the `with` block lasts.

    Args:
        plans (`list[Plan]`): One per batch that is made, until used up; then `Plan()`.
        num_polls (`int`): How often a batch is looked at before it has ended.
        page (`int`): Batches on a page of the list, at most.
        max_requests (`int`), max_enqueued (`int`): Lines in a file, and in all batches that have not ended.
        faults (`dict`): `"POST /batches"` -> what its next requests meet: an HTTP status, a body,
            `DROPPED`, `UNHEARD` or None.
        refused (`Collection`): Keys that get a 400 in whatever batch they are.
        unknown (`Collection`): Fields of a chat completion that it refuses, as OpenAI's API does those of vLLM.
        watch (`Callable`): Called with each request and one of `MOMENTS`.

    Attributes:
        billed (`Counter`): How often each request was paid for, by its key.
        bodies (`dict`): What was asked last under each key; by the text of the request where it was not in a batch.
    """

    def __init__(
        self,
        plans: list[Plan] | None = None,
        num_polls: int = 2,
        page: int = 2,
        max_requests: int = 50_000,
        max_enqueued: int = 10**9,
        faults: dict[str, list[Any]] | None = None,
        refused: Collection[str] = (),
        unknown: Collection[str] = ("min_p", "repetition_penalty", "top_k"),
        watch: Callable[[str, str], None] = lambda event, moment: None,
    ):
        self.plans, self.faults, self.watch = list(plans or []), dict(faults or {}), watch
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.billed: Counter[str] = Counter()
        self.bodies: dict[str, dict[str, Any]] = {}
        self.events: list[str] = []
        self._num_polls, self._page, self._refused, self._unknown = num_polls, page, refused, unknown
        self._max_requests, self._max_enqueued = max_requests, max_enqueued
        self._results: dict[str, tuple[bytes, bytes]] = {}
        self._lock = threading.RLock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def _serve(self) -> None:
                outer._serve(self)

            do_GET = do_POST = do_DELETE = _serve

            def log_message(self, *_: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that was killed

        self._http = Http(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "BatchServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, http: BaseHTTPRequestHandler) -> None:
        content = http.rfile.read(int(http.headers.get("Content-Length", 0)))
        address = urlsplit(http.path)
        parts = address.path.removeprefix("/v1/").split("/")
        event = f"{http.command} /{parts[0]}" + ("/*" if len(parts) > 1 and parts[0] != "chat" else "")
        with self._lock:
            self.events.append(event)
            if parts[0] == "chat" and (refusal := self._refusal(json.loads(content))):
                return _send(http, 400, refusal)
            fault = self.faults[event].pop(0) if self.faults.get(event) else None
        self.watch(event, MOMENTS[0])
        if fault == DROPPED:
            return _hang_up(http)
        if isinstance(fault, int):
            answer = (fault, {"error": {"message": f"fault {fault}"}})
        elif isinstance(fault, bytes | dict | list):
            answer = (200, fault)
        else:
            with self._lock:
                answer = self._answer(http, parts, parse_qs(address.query), content)
        self.watch(event, MOMENTS[1])
        if fault == UNHEARD:
            return _hang_up(http)
        _send(http, *answer)
        self.watch(event, MOMENTS[2])

    def _refusal(self, body: dict[str, Any]) -> dict[str, Any] | None:
        named = ", ".join(name for name in self._unknown if name in body)
        return {"error": {"message": f"Unrecognized request arguments supplied: {named}"}} if named else None

    def _answer(self, http: BaseHTTPRequestHandler, parts: list[str], query: dict[str, Any], content: bytes) -> tuple[int, Any]:
        missing = (404, {"error": {"message": "no such object"}})
        match http.command, parts:
            case "POST", ["chat", "completions"]:
                body = json.loads(content)
                self.bodies[body["messages"][0]["content"][-1]["text"]] = body
                return 200, completion(body)
            case "POST", ["files"]:
                fields = _form(http.headers["Content-Type"], content)
                assert fields["purpose"] == b"batch"
                return 200, self._put_file(fields["file"])
            case "GET", ["files", file_id, "content"]:
                return (200, self.files[file_id]) if file_id in self.files else missing
            case "DELETE", ["files", file_id]:
                found = self.files.pop(file_id, None) is not None
                return (200, {"id": file_id, "object": "file", "deleted": True}) if found else missing
            case "POST", ["batches"]:
                return self._make(json.loads(content))
            case "GET", ["batches"]:
                limit = min(self._page, int(query.get("limit", ["20"])[0]))
                ids = list(reversed(self.batches))
                after = ids.index(query["after"][0]) + 1 if "after" in query else 0
                page = [_told(self.batches[batch_id]) for batch_id in ids[after : after + limit]]
                more = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
                return 200, {"object": "list", "data": page, "has_more": after + limit < len(ids), **more}
            case "GET", ["batches", batch_id]:
                return (200, self._look(self.batches[batch_id])) if batch_id in self.batches else missing
        return missing

    def _put_file(self, content: bytes) -> dict[str, Any]:
        file_id = f"file-{len(self.events)}-{len(self.files)}"
        self.files[file_id] = content
        return {"id": file_id, "object": "file", "bytes": len(content), "created_at": 0, "filename": "f", "purpose": "batch"}

    def _make(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """All of a batch happens here; looking at it only tells."""
        if asked["input_file_id"] not in self.files:
            return 400, {"error": {"message": f"no file {asked['input_file_id']}"}}
        assert (asked.pop("endpoint"), asked.pop("completion_window")) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        enqueued = sum(b["request_counts"]["total"] for b in self.batches.values() if b["status"] not in _ENDED)
        plan = self.plans.pop(0) if self.plans else Plan()
        problem = None
        if len({line["custom_id"] for line in lines}) < len(lines) or not 0 < len(lines) <= self._max_requests:
            problem = {"code": "invalid_file", "message": "doubled or too many requests", "line": 1}
        elif any(line.keys() != KEYS or len(line["custom_id"]) > MAX_CUSTOM_ID for line in lines):
            problem = {"code": "invalid_file", "message": "not a request", "line": 1}
        elif enqueued + len(lines) > self._max_enqueued:
            problem = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
        if problem:
            plan = Plan("failed", errors=(problem,))
        batch_id = f"batch_{len(self.batches)}"
        batch = {"id": batch_id, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch |= {"created_at": len(self.batches), "status": "validating", "_plan": plan, "_polls": 0, **asked}
        batch["request_counts"] = {"total": len(lines), "completed": 0, "failed": 0}
        self.batches[batch_id] = batch
        output, errors = b"", b""
        for i, line in enumerate(lines if plan.end != "failed" else []):
            done = {"id": f"r{i}", "custom_id": line["custom_id"], "response": None, "error": None}
            self.bodies[line["custom_id"]] = line["body"]
            if plan.num_begun is not None and i >= plan.num_begun:
                code = "batch_cancelled" if plan.end == "cancelled" else "batch_expired"
                errors += _line(done | {"error": {"code": code, "message": "not begun"}})
                continue
            refusal = self._refusal(line["body"])
            status = 400 if line["custom_id"] in self._refused or refusal else plan.statuses.get(i)
            batch["request_counts"]["completed" if status is None else "failed"] += 1
            if status == "timeout":
                errors += _line(done | {"error": {"code": "request_timeout", "message": "timed out"}})
            elif status is not None:
                body = refusal or {"error": {"message": f"fault {status}"}}
                errors += _line(done | {"response": {"status_code": status, "body": body}})
            else:
                body = {"choices": "?"} if i in plan.garbled else completion(line["body"])
                answered = _line(done | {"response": {"status_code": 200, "body": body}})
                self.billed[line["custom_id"]] += i not in plan.dropped and i not in plan.garbled
                output += b"" if i in plan.dropped else answered * (2 if plan.doubled else 1)
        if plan.doubled:
            stranger = {"custom_id": "somebody else's", "response": {"status_code": 200, "body": completion({"n": 1})}}
            output = _line(stranger) + b"[]\n" + output + b'{"custom_id": "hal'
        self._results[batch_id] = output, errors
        return 200, _told(batch)

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["_polls"] += 1
        plan, seen = batch["_plan"], dict(batch)
        if batch["_polls"] >= self._num_polls and batch["status"] not in _ENDED:
            batch["status"] = plan.end
            if plan.errors:
                batch["errors"] = {"object": "list", "data": list(plan.errors)}
            for name, content in zip(("output_file_id", "error_file_id"), self._results[batch["id"]], strict=True):
                if content:
                    batch[name] = self._put_file(content)["id"]
        elif batch["status"] not in _ENDED:
            batch["status"] = seen["status"] = "in_progress"
            return _told(seen | {"request_counts": {"total": batch["request_counts"]["total"], "completed": 0, "failed": 0}})
        return _told(batch)


_ENDED = ("completed", "expired", "cancelled", "failed")


def _send(http: BaseHTTPRequestHandler, status: int, body: Any) -> None:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    http.send_response(status)
    http.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
    http.send_header("Content-Length", str(len(encoded)))
    http.send_header("retry-after-ms", "1")
    http.end_headers()
    http.wfile.write(encoded)
    http.wfile.flush()


def _hang_up(http: BaseHTTPRequestHandler) -> None:
    http.connection.shutdown(socket.SHUT_RDWR)


def _told(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if not name.startswith("_")}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _form(content_type: str, content: bytes) -> dict[str, bytes]:
    """The fields of a `multipart/form-data` body."""
    boundary = b"--" + content_type.split("boundary=")[1].encode()
    fields = {}
    for part in content.split(boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        fields[head.split(b'name="')[1].split(b'"')[0].decode()] = value.removesuffix(b"\r\n")
    return fields

"""
An OpenAI-compatible server in a process of its own, which fails on purpose and writes down what it was asked.

    python tests/support/faulty_server.py --log F [--fault_share 0.2] [--delay_s 0.02]

It prints its port, then serves until it is killed. Every request is known by its `seed`, which is unique to it. The log has
one line per event: `asked SEED`, then `answered SEED` when good completions were written to the socket, or `FAULT SEED`. A
request's k-th visit meets the same fault in every run. Nothing of the project is imported: a client under test that is
wrong cannot make its server wrong too.
"""

import argparse
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


BUSY, BUSY_UNTIL, ERROR, DOWN = "429", "429-retry-after", "500", "503"
RESET, HANG, CUT, PAGE = "reset", "hang", "truncated-json", "content-type"
EMPTY, FEWER, REFUSAL, HUGE = "empty-choices", "fewer-choices", "refusal", "10MB"
ERROR_IN_BODY, ERROR_IN_CHOICE = "error-in-body", "error-in-choice"
FAULTS = [BUSY, BUSY_UNTIL, ERROR, DOWN, RESET, HANG, CUT, PAGE, EMPTY, FEWER, REFUSAL, HUGE, ERROR_IN_BODY, ERROR_IN_CHOICE]
ANSWERED = "answered"


def completions(body: dict[str, Any]) -> list[str]:
    """What a server says that draws by the seed: the same for the same request, whenever it is asked."""
    text = body["messages"][0]["content"][-1]["text"]
    choices = re.findall(r"^[A-Z]\. (.+)$", text, re.MULTILINE) or ["dog", "bell"]
    draw = random.Random(body["seed"])
    said = [draw.choice(choices) for _ in range(body["n"])]
    return [f"<think>I hear a {sound}.</think><answer>{sound}</answer>" for sound in said]


class Server:
    def __init__(self, log: Path, fault_share: float, delay_s: float):
        self._log = open(log, "a", buffering=1)  # noqa: SIM115 - as long as the process lives
        self._fault_share, self._delay_s = fault_share, delay_s
        self._visits: Counter[int] = Counter()
        self._lock = threading.Lock()

    def write_down(self, event: str, seed: int) -> None:
        with self._lock:
            self._log.write(f"{event} {seed}\n")

    def fault_of(self, seed: int) -> str | None:
        """Of this visit; by the seed and the number of the visit alone."""
        with self._lock:
            self._visits[seed] += 1
            draw = random.Random(f"{seed}/{self._visits[seed]}")
        return draw.choice(FAULTS) if draw.random() < self._fault_share else None

    def serve(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        seed = body["seed"]
        self.write_down("asked", seed)
        fault = self.fault_of(seed)
        time.sleep(random.uniform(0, 2 * self._delay_s))
        if fault == REFUSAL:  # an answer of the model that is none: the row keeps it
            choices = [choice_of(None, refusal="I can't help with that.")] * body["n"]
            send_json(http, 200, {"choices": choices})
            return self.write_down(ANSWERED, seed)
        if fault is not None:
            self.write_down(fault, seed)
            return fail(http, fault, body)
        said = completions(body)
        usage = {"prompt_tokens": 100, "completion_tokens": 10 * len(said), "prompt_tokens_details": {"cached_tokens": 75}}
        if send_json(http, 200, {"choices": [choice_of(text) for text in said], "usage": usage}):
            self.write_down(ANSWERED, seed)


def choice_of(text: str | None, refusal: str | None = None) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": text, "refusal": refusal}, "finish_reason": "stop"}


def fail(http: BaseHTTPRequestHandler, fault: str, body: dict[str, Any]) -> None:
    if fault == RESET:  # an RST instead of an orderly end
        http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        http.connection.close()
    elif fault == HANG:
        http.connection.settimeout(60)
        http.rfile.read(1)  # returns when the client has had enough
    elif fault == CUT:
        whole = json.dumps({"choices": [choice_of(text) for text in completions(body)]}).encode()
        send(http, 200, whole[: len(whole) // 2])
    elif fault == PAGE:
        send(http, 200, b"<html><body>Welcome to the proxy</body></html>", "text/html")
    elif fault == EMPTY:
        send_json(http, 200, {"choices": []})
    elif fault == ERROR_IN_BODY:
        send_json(http, 200, {"error": {"message": "Provider returned error", "code": 502}})
    elif fault == ERROR_IN_CHOICE:
        failed = choice_of("<think>I hear") | {"finish_reason": "error", "error": {"message": "lost the provider", "code": 502}}
        send_json(http, 200, {"choices": [*(choice_of(text) for text in completions(body)[1:]), failed]})
    elif fault == FEWER:
        send_json(http, 200, {"choices": [choice_of(text) for text in completions(body)][1:]})
    elif fault == HUGE:
        send_json(http, 200, {"choices": [choice_of("very " * 2_000_000)] * body["n"]})
    else:
        more = {"Retry-After": "1"} if fault == BUSY_UNTIL else {}
        send_json(http, int(fault[:3]), {"error": {"message": f"fault {fault}"}}, **more)


def send_json(http: BaseHTTPRequestHandler, status: int, body: dict[str, Any], **more: str) -> bool:
    return send(http, status, json.dumps(body).encode(), "application/json", **more)


def send(http: BaseHTTPRequestHandler, status: int, content: bytes, kind: str = "application/json", **more: str) -> bool:
    """Whether it could be written: a client that was killed reads nothing."""
    try:
        http.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **more}.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(content)
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--fault_share", type=float, default=0.0)
    parser.add_argument("--delay_s", type=float, default=0.0)
    server = Server(**vars(parser.parse_args()))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections, as real servers do
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            server.serve(self)

        def log_message(self, *_: object) -> None:
            pass

    class Http(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that went away, or a connection that was reset on purpose

    http = Http(("127.0.0.1", 0), Handler)
    print(http.server_port, flush=True)
    sys.stdout.close()
    http.serve_forever()


if __name__ == "__main__":
    main()

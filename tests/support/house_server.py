"""
A server of any vendor: what it replies to a chat completion, and to a look at its models, is what the test says.

Nothing of the project is imported. Unlike `openai_server` it does not understand requests: it keeps their bodies.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


# Status and body; a body that is no bytes is sent as JSON.
Reply = tuple[int, Any]


def chat(*texts: Any, **message: Any) -> dict[str, Any]:
    """A chat completion with a choice per text; `message` are further fields of each message."""
    return {"choices": [choice(content=text, **message) for text in texts]}


def choice(finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][-1]["text"]


class HouseServer:
    """
    Serve while the `with` block lasts.

    Args:
        reply (`Callable`): The body of a request -> `Reply`, or the body alone of a reply with status 200.
        models (`Any`): Replied to `GET /v1/models`, as `reply` returns it.
        of_models (`dict`): Replied to `GET /v1/models/NAME`, by name.
        headers (`dict`): Of every reply.

    Attributes:
        bodies (`list[dict]`): Of the chat completions that were asked for.
    """

    def __init__(
        self,
        reply: Callable[[dict[str, Any]], Any],
        models: Any = (404, {"error": {"message": "no such route"}}),
        of_models: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ):
        self.bodies: list[dict[str, Any]] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                self._send(reply(body))

            def do_GET(self) -> None:
                name = self.path.removeprefix("/v1/models").strip("/")
                missing = (404, {"error": {"message": f"The model {name} does not exist"}})
                self._send(models if not name else (of_models or {}).get(name, missing))

            def _send(self, reply: Any) -> None:
                status, body = reply if isinstance(reply, tuple) else (200, reply)
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                sent = {"Content-Type": "application/json", "Content-Length": str(len(content)), "retry-after-ms": "1"}
                for header, value in (sent | (headers or {})).items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "HouseServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

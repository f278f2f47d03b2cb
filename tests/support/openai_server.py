"""
A loopback server for `POST /v1/chat/completions`, as `sightsound.engines.openai.OpenAIEngine` uses it.

It proves that the client speaks well-formed HTTP, sends the media that it was given, and copes with failures. It is *not*
vLLM: it does not prove that a real server expands placeholders, samples frames, schedules batches or draws seeds alike.
"""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from sightsound.data.frames import Frames
from sightsound.engines.base import ChatRequest, Completion, Sampling
from sightsound.engines.sampling import NEUTRAL
from sightsound.engines.transformers import TransformersEngine


# In place of a status code: what else a server can do wrong.
DROP, ONE_CHOICE = "drop", "one choice"


@dataclass(frozen=True)
class Ask:
    """One request as the server understood it."""

    model: str
    text: str
    audio: np.ndarray | None
    video: Frames | None
    n: int
    temperature: float
    max_tokens: int
    seed: int
    neutral: dict[str, float] = field(default_factory=dict)
    response_format: dict[str, Any] | None = None


Answer = Callable[[Ask], list[str] | list[Completion]]


def _parse(body: dict[str, Any]) -> Ask:
    """Strict: a field that the protocol does not know, or that is not where it belongs, raises."""
    import soundfile
    from PIL import Image

    (message,) = body.pop("messages")
    parts = {part["type"]: part[part["type"]] for part in message["content"]}
    if list(parts) not in (["text"], ["input_audio", "text"], ["video_url", "text"], ["input_audio", "video_url", "text"]):
        raise ValueError(f"unexpected content parts {list(parts)}")
    audio = video = None
    if "input_audio" in parts:
        wav = base64.b64decode(parts["input_audio"]["data"], validate=True)
        audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
        if (rate, audio.ndim, parts["input_audio"]["format"]) != (16_000, 1, "wav"):
            raise ValueError("expected mono WAV at 16 kHz")
    if "video_url" in parts:
        frames = parts["video_url"]["url"].removeprefix("data:video/jpeg;base64,").split(",")
        images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(frame, validate=True)))) for frame in frames]
        video = Frames(np.stack(images), body.pop("media_io_kwargs")["video"]["fps"])
        if body.pop("mm_processor_kwargs") != {"fps": video.fps}:
            raise ValueError("the frame rate of the processor is not that of the video")
    neutral = {name: body.pop(name) for name in NEUTRAL if name in body}
    return Ask(text=parts["text"], audio=audio, video=video, neutral=neutral, **body)


def model_answer(engine: TransformersEngine) -> Answer:
    """Answer with a model in this process; one request at a time, since the draw goes through torch's global generator."""
    lock = threading.Lock()

    def answer(ask: Ask) -> list[Completion]:
        request = ChatRequest(str(ask.seed), ask.text, audio=ask.audio, video=ask.video)
        with lock:
            ((result,),) = engine.complete([request], Sampling(ask.n, ask.temperature, ask.max_tokens, ask.seed))
        return result.completions

    return answer


class OpenAIServer:
    """
    Serve while the `with` block lasts.

    Args:
        answer (`Answer`): Request to its `n` texts (or `Completion`s); `model_answer(engine)` for a real model.
        faults (`Iterable`): One per request that comes in, until used up: an HTTP status, `DROP` (close the connection
            without an answer), `ONE_CHOICE` (ignore `n`), or None (answer well).
        fault_of (`Callable`, *optional*): A request's text to its fault, instead.
        refusal_of (`Callable`): The names of a request's fields to the message with which it is refused (400), or None.
        is_up (`bool`): Whether it lists its models, by which a client tells an outage from a request that always fails.

    Attributes:
        asked (`list[Ask]`): Every request that was answered well, in order of arrival.
        statuses (`list`): What every request met: a fault, or 200.
        faulted (`list[str]`): Texts of the requests that met a fault.
        most_at_once (`int`): Requests that were being answered at the same time, at most.
    """

    def __init__(
        self,
        answer: Answer,
        faults: Iterable[int | str | None] = (),
        fault_of: Callable[[str], int | str | None] | None = None,
        refusal_of: Callable[[set[str]], str | None] = lambda _: None,
        is_up: bool = True,
    ):
        self.asked: list[Ask] = []
        self.statuses: list[int | str] = []
        self.faulted: list[str] = []
        self._fault_of, self._refusal_of = fault_of, refusal_of
        self.most_at_once = self._now = 0
        self._answer, self._faults, self._lock = answer, iter(faults), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with outer._lock:
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                try:
                    outer._serve(self)
                finally:
                    with outer._lock:
                        outer._now -= 1

            def do_GET(self) -> None:
                outer._send(self, 200 if is_up else 503, {"object": "list", "data": []})

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "OpenAIServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        with self._lock:
            text = body["messages"][0]["content"][-1]["text"]
            fault = self._fault_of(text) if self._fault_of else next(self._faults, None)
            self.statuses.append(fault or 200)
            if fault:
                self.faulted.append(text)
        if fault == DROP:
            pass  # HTTP/1.0: the connection is closed when nothing more is written
        elif isinstance(fault, int):
            self._send(http, fault, {"error": {"message": f"fault {fault}"}})
        else:
            try:
                if refusal := self._refusal_of(set(body)):
                    raise ValueError(refusal)
                ask = _parse(body)
                if ask.n > 1 and ask.temperature == 0:
                    raise ValueError("n must be 1 when using greedy sampling")  # vLLM refuses this too
                self.asked.append(ask)
                said = self._answer(ask)
            except (ValueError, TypeError, KeyError) as error:  # a client's mistake; anything else is the test's
                return self._send(http, 400, {"error": {"message": str(error)}})
            choices = []
            for i, each in enumerate(said[: 1 if fault else None]):
                text, reason = (each, "stop") if isinstance(each, str) else (each.text, each.finish_reason)
                choices.append({"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": reason})
            self._send(http, 200, {"choices": choices})

    def _send(self, http: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        content = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "loopback", **body}).encode()
        http.send_response(status)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(content)))
        if status != 200:
            http.send_header("retry-after-ms", "1")  # the client's own backoff would make tests wait for seconds
        http.end_headers()
        http.wfile.write(content)

"""What travels to an OpenAI-compatible server, and what its answers mean: completions, or a failure of a known kind."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from .audio import encode_wav
from .chat import ChatRequest, Completion, Sampling, Usage, seed_of
from .schema import REFUSED, SERVER_ERROR


BUSY = 429
DOWN = (502, 503, 504)  # what stands before a server that is not there, or not yet
REFUSALS = (400, 413, 422)
PASSING = (408, 409, 425)  # and 5xx
LONGEST_RETRY_AFTER_S = 600.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0


def delay_s(attempt: int) -> float:
    """Seconds to wait after a try that failed; `attempt` counts from 0. Spread, so that clients do not all return at once."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.5)


class RequestFailure(Exception):
    """
    A try that gave no completions.

    `outcome` is what becomes of the request if it cannot be answered: None where the run has to stop instead.
    `is_final`: the same would happen again. `is_busy`: the server asks for patience. `is_down`: it did not answer this, and
    perhaps nothing. `is_unreachable`: nothing listens there.
    """

    def __init__(
        self,
        message: str,
        outcome: str | None = None,
        is_final: bool = False,
        is_busy: bool = False,
        is_down: bool = False,
        is_unreachable: bool = False,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.outcome, self.is_final, self.is_busy = outcome, is_final, is_busy
        self.is_down, self.is_unreachable, self.retry_after_s = is_down, is_unreachable, retry_after_s


def _compressed(pixels: np.ndarray) -> bytes:
    """Lossless WebP at its quickest: smaller than PNG, made in a tenth of the time, and any server with Pillow reads it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue()


def content_of(request: ChatRequest) -> list[dict[str, Any]]:
    """The clip before the text, so that requests about the same clip begin alike."""
    parts: list[dict[str, Any]] = []
    if request.audio is not None:
        data = base64.b64encode(encode_wav(request.audio)).decode()
        parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    if request.video is not None:
        frames = ",".join(base64.b64encode(_compressed(frame)).decode() for frame in request.video.pixels)
        parts.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}})
    return [*parts, {"type": "text", "text": request.text}]


def request_body(model: str, content: list[dict[str, Any]], fps: float | None, sampling: Sampling, key: str) -> dict[str, Any]:
    """
    What is posted to `/v1/chat/completions`, or written into a batch's input file.

    Args:
        content (`list[dict]`): From `content_of`.
        fps (`float`, *optional*): Frame rate of the request's video.
        key (`str`): Of the request; together with `sampling.seed` it fixes the draw.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "n": sampling.n,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": seed_of(sampling.seed, [key]),
    }
    # vLLM would take 32 frames at most, and believe that they are a second apart.
    return body if fps is None else body | {"media_io_kwargs": {"video": {"num_frames": -1, "fps": fps}}}


def parse_completions(body: bytes, n: int) -> tuple[list[Completion], Usage | None]:
    """
    Read a chat completion strictly: a row of the ledger is made of it.

    A refusal of the model (`message.refusal`) is a completion with the finish reason `refusal`.

    Raises:
        `ValueError`: Not JSON, not a chat completion, or not `n` choices; the message says what was found.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {body[:80]!r}") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise ValueError(f"no choices: {body[:80]!r}")
    if len(choices) != n:
        raise ValueError(f"{len(choices)} choices for n={n}; it needs to support n")
    completions = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        text, refusal = (message.get("content"), message.get("refusal")) if isinstance(message, dict) else (0, None)
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if not isinstance(text, str | None) or not isinstance(refusal, str | None) or not isinstance(reason, str):
            raise ValueError(f"a choice without a text and a finish_reason: {json.dumps(choice)[:80]}")
        completions.append(Completion(refusal, "refusal") if refusal and not text else Completion(text or "", reason))
    return completions, _usage(answer.get("usage"))


def _usage(told: Any) -> Usage | None:
    """What the server counted; None where it did not."""
    if not isinstance(told, dict):
        return None
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (told.get("prompt_tokens"), told.get("completion_tokens"), cached)
    prompt, completion, cached = (count if isinstance(count, int) else None for count in counts)
    return None if prompt is None or completion is None else Usage(prompt, completion, cached)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:300]


def failure_of_status(error: Any, url: str) -> RequestFailure:
    status = error.status_code
    told = f"{url} answered {status}: {_one_line(error.message)}"
    if status in REFUSALS:
        return RequestFailure(told, REFUSED, is_final=True)
    if error.code == "insufficient_quota":  # OpenAI's 429 that no waiting helps against
        return RequestFailure(told, is_final=True)
    retry_after_s = _retry_after_s(error.response.headers)
    if status == BUSY:
        return RequestFailure(told, is_busy=True, retry_after_s=retry_after_s)
    if status in DOWN:
        return RequestFailure(told, SERVER_ERROR, is_down=True, retry_after_s=retry_after_s)
    if status in PASSING or status >= 500:
        return RequestFailure(told, SERVER_ERROR)
    if status in (401, 403):
        is_set = bool(os.environ.get("OPENAI_API_KEY"))
        told += "; check OPENAI_API_KEY" if is_set else "; OPENAI_API_KEY is not set: set it to a key of that server"
    elif status == 404:
        told += "; check --base_url (it ends in /v1) and the name of the model"
    return RequestFailure(told, is_final=True)


def failure_of_connection(error: Exception, url: str, timeout_s: float) -> RequestFailure:
    import httpx2 as httpx
    from openai import APITimeoutError

    *_, root = _causes(error)
    if isinstance(error, APITimeoutError | httpx.TimeoutException) and not isinstance(root, httpx.ConnectTimeout):
        return RequestFailure(f"no answer from {url} within {timeout_s:g} s", SERVER_ERROR, is_down=True)
    told = f"no answer from {url}: is the server running? ({type(root).__name__}: {_one_line(root)})"
    return RequestFailure(told, SERVER_ERROR, is_down=True, is_unreachable=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _retry_after_s(headers: Any) -> float | None:
    """`Retry-After` in seconds (a date, its other form, is not used by these servers), or OpenAI's `retry-after-ms`."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(LONGEST_RETRY_AFTER_S, max(0.0, float(headers[name]) * unit_s))
        except (KeyError, ValueError):
            continue
    return None

"""The requests to an OpenAI-compatible server, and what its HTTP errors mean for them."""

from __future__ import annotations

import base64
import io
import os
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sightsound.data.audio import encode_wav
from sightsound.data.schema import REFUSED, SERVER_ERROR, RowError
from sightsound.engines.base import ChatRequest, Sampling, seed_of
from sightsound.engines.request_fields import IMAGES, LEAVES_OUT, SENDS_IMAGES, VIDEO, RequestOptions
from sightsound.engines.sampling import NEUTRAL


BUSY = 429
DOWN = (502, 503, 504)  # a proxy whose server is not there, or not yet
REFUSALS = (400, 413, 422)
PASSING = (408, 409, 425)  # and 5xx
LONGEST_RETRY_AFTER_S = 600.0
LARGEST_SEED = 2**31 - 1  # Gemini and llama.cpp take a signed 32-bit integer
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
# In quotes, as in "Unsupported parameter: 'max_tokens'": without quotes the words are in many other sentences.
_REFUSED_FIELD = re.compile(r"[\"'`](seed|n|max_tokens|temperature|media_io_kwargs|mm_processor_kwargs|video_url)[\"'`]")
# Without quotes `n` is any letter n: only a sentence that limits it to one is about the field.
_REFUSED_N = re.compile(r"\bn must (?:be |equal )+(?:to )?(?:1|one)\b|\bonly n ?==? ?1\b|\bn ?(?:>|!=|<=) ?1\b", re.IGNORECASE)
# The names of this field and of its kind are in no other sentence, quoted or not.
_REFUSED_SCHEMA = re.compile(r"\bresponse_format\b|\bjson_schema\b|\bstructured[ _]outputs?\b", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")


def delay_s(attempt: int) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 0). Random, so that clients do not all come back at once."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.5)


class RequestFailure(RowError):
    """
    An attempt that gave no completions.

    Args:
        outcome (`str`): The request's outcome if no other attempt succeeds; "" where the run has to stop instead.
        detail (`str`): What was seen.
        is_final (`bool`): Another attempt would fail in the same way.
        is_busy (`bool`): The server asks to wait.
        is_down (`bool`): The server did not answer this request, and may answer none.
        is_unreachable (`bool`): Nothing listens at the address.
        retry_after_s (`float`, *optional*): How long the server asks to wait, seconds.
    """

    def __init__(
        self,
        outcome: str,
        detail: str,
        *,
        is_final: bool = False,
        is_busy: bool = False,
        is_down: bool = False,
        is_unreachable: bool = False,
        retry_after_s: float | None = None,
    ):
        super().__init__(outcome, encodable(detail))
        self.is_final, self.is_busy = is_final, is_busy
        self.is_down, self.is_unreachable, self.retry_after_s = is_down, is_unreachable, retry_after_s


# Lossless WebP at its quickest: smaller than PNG, made in a tenth of the time, and any server with Pillow reads it.
WEBP = {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}
# Lossless too, and read by every server that takes images.
PNG = {"format": "PNG", "compress_level": 1}


def _encoded(pixels: np.ndarray, image_format: dict[str, Any]) -> str:
    """One frame as base64 of a file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **image_format)
    return base64.b64encode(buffer.getvalue()).decode()


def content_of(request: ChatRequest, options: RequestOptions) -> list[dict[str, Any]]:
    """The message: the clip comes before the text, so that requests about one clip share a prefix in the server's cache."""
    parts: list[dict[str, Any]] = []
    if request.audio is not None:
        data = base64.b64encode(encode_wav(request.audio)).decode()
        parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    if request.video is not None and options.frames == IMAGES:
        urls = (f"data:image/png;base64,{_encoded(frame, PNG)}" for frame in request.video.pixels)
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    elif request.video is not None:
        frames = ",".join(_encoded(frame, WEBP) for frame in request.video.pixels)
        parts.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}})
    return [*parts, {"type": "text", "text": request.text}]


def request_body(
    model: str,
    content: list[dict[str, Any]],
    fps: float | None,
    sampling: Sampling,
    key: str,
    options: RequestOptions,
    neutral: Mapping[str, float] = NEUTRAL,
    reply_schema: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    What is posted to `/v1/chat/completions`, or written into a batch's input file.

    Args:
        content (`list[dict]`): From `content_of`.
        fps (`float`, *optional*): Frame rate of the request's video.
        key (`str`): Of the request; together with `sampling.seed` it fixes the draw.
        options (`RequestOptions`): Fields that the server needs changed.
        neutral (`Mapping`): The fields of `sampling.NEUTRAL` that the server accepts.
        reply_schema (`dict`, *optional*): JSON schema of the reply.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "n": sampling.n,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": seed_of(sampling.seed, [key]) & LARGEST_SEED,
        **neutral,
    }
    if fps is not None and options.frames == VIDEO:
        # Without it vLLM takes 32 frames at most, as if they were a second apart.
        body["media_io_kwargs"] = {"video": {"num_frames": -1, "fps": fps}}
        # Some models' processors read the frame rate here, and take 2 frames per second for granted without.
        body["mm_processor_kwargs"] = {"fps": fps}
    if reply_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": reply_schema},
        }
    return options.apply(body)


def encodable(text: str) -> str:
    """Half a surrogate pair, which no UTF-8 file can hold, becomes U+FFFD: `json` keeps it, and pydantic refuses the text."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:300]


def failure_of_reported(status: int, error: Any, url: str) -> RequestFailure:
    """Turn an error inside a body into the failure that its HTTP status would have given."""
    import httpx2 as httpx  # what the openai client is built on
    from openai import APIStatusError

    seen = httpx.Response(status, request=httpx.Request("POST", url))
    reason = error.get("message") or error.get("code") if isinstance(error, dict) else error
    message = f"Error code: {status}" + (f" - {reason}" if reason else "")
    cause = APIStatusError(message, response=seen, body=error)
    failure = failure_of_status(cause, url)
    failure.__cause__ = cause
    return failure


def failure_of_status(error: Any, url: str) -> RequestFailure:
    """What an `APIStatusError` means for its request."""
    status = error.status_code
    detail = f"{url} answered {status}: {_one_line(error.message)}"
    metadata = error.body.get("metadata") if isinstance(error.body, dict) else None
    if isinstance(metadata, dict) and metadata.get("raw"):  # OpenRouter: the message of the provider behind it
        detail += f" ({_one_line(metadata['raw'])})"
    if status in REFUSALS:
        return RequestFailure(REFUSED, detail + _remedy(error.message), is_final=True)
    if error.code == "insufficient_quota":  # OpenAI's 429 that does not pass
        return RequestFailure("", detail, is_final=True)
    retry_after_s = _retry_after_s(error.response.headers)
    if status == BUSY:
        return RequestFailure(SERVER_ERROR, detail, is_busy=True, retry_after_s=retry_after_s)
    if status in DOWN:
        return RequestFailure(SERVER_ERROR, detail, is_down=True, retry_after_s=retry_after_s)
    if status in PASSING or status >= 500:
        return RequestFailure(SERVER_ERROR, detail)
    if status in (401, 403):
        is_set = bool(os.environ.get("OPENAI_API_KEY"))
        detail += "; check OPENAI_API_KEY" if is_set else "; OPENAI_API_KEY is not set: set it to a key of that server"
    elif status == 404:
        detail += "; check --base_url (it ends in /v1) and the name of the model"
    return RequestFailure("", detail, is_final=True)


def _remedy(refusal: str) -> str:
    """The flag to give where a server refuses a field and names it."""
    found = _REFUSED_FIELD.search(refusal)
    name = found.group(1) if found else "n" if _REFUSED_N.search(refusal) else None
    if name is None and _REFUSED_SCHEMA.search(refusal):
        name = "response_format"
    if name is None:
        return ""
    if name == "video_url":
        return f"; --frames images{SENDS_IMAGES}"
    if name == "max_tokens" and "max_completion_tokens" in refusal:
        return f"; --request_field max_completion_tokens=N --omit_field max_tokens{LEAVES_OUT}"
    return f"; --omit_field {name}{LEAVES_OUT}"


def failure_of_connection(error: Exception, url: str, timeout_s: float) -> RequestFailure:
    """What a broken connection, or none, means for its request."""
    import httpx2 as httpx
    from openai import APITimeoutError

    *_, root = _causes(error)
    if isinstance(error, APITimeoutError | httpx.TimeoutException) and not isinstance(root, httpx.ConnectTimeout):
        return RequestFailure(SERVER_ERROR, f"no answer from {url} within {timeout_s:g} s", is_down=True)
    detail = f"no answer from {url}: is the server running? ({type(root).__name__}: {_one_line(root)})"
    return RequestFailure(SERVER_ERROR, detail, is_down=True, is_unreachable=True)


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

"""Repeat calls of the Hub that may succeed later, and describe a failure in one line."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sightsound.cli import InputError


T = TypeVar("T")

TRIES = 8  # with the delays below, one to three minutes
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0  # the Hub counts requests in windows of five minutes
# After a conflict (409, 412) the caller looks at the repository again; the others pass with time.
TRANSIENT = {408, 409, 412, 429, 500, 502, 503, 504}
ADDRESS_QUERY = re.compile(r"(?<=\w)\?\S*")  # of a signed address: it gives access to whoever reads it


class Conflict(Exception):
    """The repository changed during this attempt."""


def retrying(call: Callable[[], T]) -> T:
    """
    Call, and call again after a conflict or a temporary failure, with growing delays or those that the Hub asks for.

    (`http_backoff` of huggingface_hub repeats one transfer. Here a whole step is repeated, so it sees a changed repository.)

    Args:
        call (`Callable`): Must be safe to repeat after a failure half-way.

    Raises:
        `InputError`: A failure that waiting does not help, or the last of `TRIES` failures.
    """
    import httpx

    for attempt in range(1, TRIES + 1):
        try:
            return call()
        # The LFS and Xet clients raise RuntimeError for a failed transfer; a bad repo id or card is a ValueError.
        except (httpx.HTTPError, OSError, RuntimeError, ValueError, Conflict) as error:
            seen = what_happened(error)
            if attempt == TRIES or not _is_transient(error):
                raise InputError(seen) from error
            delay = _retry_after_s(error)
            if delay is None:
                delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            if not is_offline(error):
                print(f"{seen}; trying again in {delay:.1f} s ({attempt} of {TRIES - 1})", flush=True)
            elif attempt == 1:
                print(f"{seen}; trying again for a few minutes", flush=True)
            time.sleep(delay)
    raise AssertionError("unreachable")


def is_offline(error: BaseException) -> bool:
    """Whether the Hub's host was not found or refused the connection. Then each try fails in the same way."""
    import httpx

    return _answered(error) is None and any(isinstance(each, httpx.ConnectError) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answered(error: BaseException) -> Any:
    """The error with the Hub's response, which its client may have wrapped; None if there was no response."""
    return next((each for each in _causes(error) if getattr(each, "response", None) is not None), None)


def _is_transient(error: BaseException) -> bool:
    import httpx

    if (answered := _answered(error)) is not None:
        return answered.response.status_code in TRANSIENT
    passing = (httpx.TransportError, ConnectionError, TimeoutError, RuntimeError, Conflict)
    return any(isinstance(each, passing) for each in _causes(error))


def _retry_after_s(error: BaseException) -> float | None:
    answered = _answered(error)
    header = answered.response.headers.get("Retry-After", "") if answered is not None else ""
    return min(LONGEST_RETRY_AFTER_S, float(header)) if header.isdigit() else None


def what_happened(error: BaseException) -> str:
    """One line on a failure of the Hub, without tokens, and without hosts and queries of addresses."""
    from huggingface_hub import constants

    if (answered := _answered(error)) is None:
        *_, root = _causes(error)
        if is_offline(error):
            return f"no connection to the Hub at {urlsplit(constants.ENDPOINT).netloc} ({' '.join(str(root).split())[:200]})"
        text = str(error) if root is error else f"{error} {type(root).__name__}: {root}"
        return ADDRESS_QUERY.sub("", " ".join(text.split()))[:300]
    response, message = answered.response, getattr(answered, "server_message", None)
    seen = f"the Hub answered {response.status_code} to {response.request.method} {response.request.url.path}"
    if message:
        seen += f" ({' '.join(message.split())[:300]})"
    if response.status_code == 401:
        return f"{seen}; {_about_token()}"
    if response.status_code == 403 and response.request.method not in ("GET", "HEAD"):
        return f"{seen}; set HF_TOKEN to a token with write access, or use an organisation that you may write to"
    return seen


def _about_token() -> str:
    """What to do about a 401. The Hub answers it to an unknown token, also where none is needed."""
    from huggingface_hub import get_token

    if get_token() is None:
        return "set HF_TOKEN to a token, or run `hf auth login`"
    where = "HF_TOKEN" if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") else "`hf auth login`"
    return (
        f"the token of {where} is mistyped, expired or deleted: make a new one (with write access to publish) and set HF_TOKEN "
        "or run `hf auth login`; public repositories can be read without a token"
    )

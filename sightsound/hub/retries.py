"""Asking the Hub again when that may help, and telling the user in one line when it may not."""

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

TRIES = 8  # with the delays below one to three minutes of a Hub that does not answer
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0  # the Hub counts requests in windows of five minutes
# A conflict (409, 412) is a matter of looking again, the rest of waiting; any other status is an answer.
TRANSIENT = {408, 409, 412, 429, 500, 502, 503, 504}


ADDRESS_QUERY = re.compile(r"(?<=\w)\?\S*")  # a signed address lets its reader in


class Conflict(Exception):
    """Somebody else changed what this attempt was built on."""


def retrying(call: Callable[[], T]) -> T:
    """
    Call again after a conflict or a passing failure: each time later, as much later as the Hub asks for.

    Args:
        call (`Callable`): Has to bear being called again after it failed half-way.

    Raises:
        `InputError`: Nothing that waiting would mend, or it did not pass in `TRIES` calls.
    """
    import httpx

    for attempt in range(1, TRIES + 1):
        try:
            return call()
        # RuntimeError is how the LFS and Xet clients tell of a failed transfer; ValueError, of a bad repo id or card.
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
    """Whether the Hub's host was not found or took no connection: the network is down, and each try says the same."""
    import httpx

    return _answered(error) is None and any(isinstance(each, httpx.ConnectError) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answered(error: BaseException) -> Any:
    """The error that carries the Hub's answer, however deep its client wrapped it; None if there was no answer."""
    return next((each for each in _causes(error) if getattr(each, "response", None) is not None), None)


def _is_transient(error: BaseException) -> bool:
    import httpx

    if (answered := _answered(error)) is not None:
        return answered.response.status_code in TRANSIENT
    passing = (httpx.TransportError, ConnectionError, TimeoutError, RuntimeError, Conflict)
    return any(isinstance(each, passing) for each in _causes(error))


def _retry_after_s(error: BaseException) -> float | None:
    answered = _answered(error)
    told = answered.response.headers.get("Retry-After", "") if answered is not None else ""
    return min(LONGEST_RETRY_AFTER_S, float(told)) if told.isdigit() else None


def what_happened(error: BaseException) -> str:
    """One line about a failure of the Hub, without a token. Of an address only the path."""
    if (answered := _answered(error)) is None:
        *_, root = _causes(error)
        if is_offline(error):
            return f"no connection to the Hub at {_hub_host()} ({' '.join(str(root).split())[:200]})"
        told = str(error) if root is error else f"{error} {type(root).__name__}: {root}"
        return ADDRESS_QUERY.sub("", " ".join(told.split()))[:300]
    response, message = answered.response, getattr(answered, "server_message", None)
    seen = f"the Hub answered {response.status_code} to {response.request.method} {response.request.url.path}"
    if message:
        seen += f" ({' '.join(message.split())[:300]})"
    if response.status_code == 401:
        return f"{seen}; {_about_token()}"
    if response.status_code == 403 and response.request.method not in ("GET", "HEAD"):
        return f"{seen}; set HF_TOKEN to a token with write access, or use an organisation that you may write to"
    return seen


def _hub_host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc


def _about_token() -> str:
    """What to do about a 401, which the Hub answers to a token that it does not know, also where none is needed."""
    from huggingface_hub import get_token

    if get_token() is None:
        return "set HF_TOKEN to a token, or run `hf auth login`"
    where = "HF_TOKEN" if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") else "`hf auth login`"
    return (
        f"the token of {where} is mistyped, expired or deleted: make a new one (with write access to publish) and set HF_TOKEN "
        "or run `hf auth login`; what is public can be read without a token"
    )

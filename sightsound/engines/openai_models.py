r"""
The servers of one model: look the model up there before hours of work are spent on it, and choose where a request goes.

    python -m sightsound.engines.openai_models --model gpt-audio --base_url https://api.openai.com/v1

`GET /v1/models` lists the models of an OpenAI-compatible server. A name that is not listed is an error: the first request would
be answered with a 404, or by another model than the one that the rows record. A missing name is no error where the list may be
shorter than what is served: variants (`NAME:free`), tags (`NAME` for `NAME:latest`), prefixes (`models/NAME`), wildcards, lists
of several pages, models that only `GET /v1/models/NAME` knows, and deployments of Azure. A server without a list is no error.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, urlsplit

from sightsound.cli import InputError, parse_arguments, run
from sightsound.engines.openai_protocol import delay_s, encodable
from sightsound.engines.sampling import NeutralFields


TIMEOUT_S = 10.0
MOST_NAMES = 5
# After so many failures in a row a replica gets no requests for a while, then a single one, if there are other replicas.
FAILURES_BEFORE_REST = 3

# The day on which a model is shut down: `shutdown_date` of OpenAI, `expiration_date` of OpenRouter, and synonyms.
_ENDS = ("shutdown_date", "shutdown_at", "sunset_date", "retirement_date", "expiration_date")
# The day from which its makers no longer recommend it (LiteLLM, Mistral, Azure): it may be served longer.
_DEPRECATED = ("deprecation_date", "deprecation", "deprecated_at")

# Azure lists the models that could be deployed. It serves deployments, whose names the user chooses.
_AZURE = (".azure.com", ".azure.us", ".azure.cn", ".azure-api.net")


class NotAnswered(Exception):
    """A server did not give a list; the message says why. `is_unusable`: other requests would fail too."""

    def __init__(self, message: str, is_unusable: bool = False):
        super().__init__(message)
        self.is_unusable = is_unusable


def look_up(model: str, client: Any, url: str) -> str | None:
    """
    Find a model in its server's list.

    Args:
        client (`openai.OpenAI`): From `make_client`.
        url (`str`): Of the server, for messages.

    Returns:
        `str` or `None`: A warning with the day on which the model ends, if the server names one.

    Raises:
        `InputError`: The server does not serve the model, or not any more.
        `NotAnswered`: There is no list to find it in.
    """
    entries, is_whole = _entries(_get(client, "/models"))
    found = next((entry for entry in entries if _is_called(entry, model)), None)
    if found is None and (entry := _retrieved(client, model)) is not None:
        found = entry
    if found is not None:
        return _end_of(found, model, url)
    if not entries or not is_whole or (urlsplit(url).hostname or "").endswith(_AZURE):
        raise NotAnswered("its list of models is empty or not complete")
    raise InputError(f"{url} serves no model named {model}; it lists {_nearest(model, entries)}; give one of these names")


def is_alive(client: Any) -> bool:
    """Whether a server answers anything at all."""
    import httpx2 as httpx  # what the openai client is built on
    from openai import APIConnectionError, APIStatusError

    try:
        _request(client, "/models")
    except APIStatusError as error:
        return error.status_code < 500
    except (APIConnectionError, httpx.HTTPError):
        return False
    return True


def look_up_all(model: str, base_urls: Sequence[str], is_needed: bool = False) -> Iterator[str]:
    """
    Look a model up at each of its servers: yields one line for each. The model itself gets no request.

    Args:
        is_needed (`bool`): A server that cannot be reached, or refuses the key, is an error.

    Raises:
        `InputError`: A server does not serve it.
    """
    for url in base_urls:
        try:
            line = look_up(model, make_client(url, TIMEOUT_S), url)
        except NotAnswered as reason:
            if is_needed and reason.is_unusable:
                raise InputError(f"{model} cannot be looked up at {url}: {reason}") from reason
            line = f"{model} was not looked up at {url}: {reason}."
        yield line or f"{url} lists {model}."


def make_client(url: str, timeout_s: float) -> Any:
    """
    The `openai` client of one server.

    The client does not retry. The engines retry themselves, because they can wait minutes, use another server or drop a refused
    field; and a batch must not be created twice.

    Raises:
        `InputError`: `OPENAI_API_KEY` cannot be a key.
    """
    import httpx2 as httpx  # what the openai client is built on
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY", "").strip() or "EMPTY"  # a server of one's own needs none
    if not (key.isascii() and key.isprintable()):  # the client's error would show the key
        raise InputError("OPENAI_API_KEY holds characters that no key has, such as a line break; set it to the key alone")
    return OpenAI(base_url=url, api_key=key, max_retries=0, timeout=httpx.Timeout(timeout_s, connect=TIMEOUT_S))


def _request(client: Any, path: str) -> bytes:
    import httpx2 as httpx

    response: httpx.Response = client.get(path, cast_to=httpx.Response, options={"timeout": TIMEOUT_S})
    return response.content


def _get(client: Any, path: str) -> Any:
    """The JSON at a path of a server."""
    import httpx2 as httpx
    from openai import APIConnectionError, APIStatusError

    try:
        return json.loads(_request(client, path))
    except APIStatusError as error:
        reply = f"GET {path} was answered {error.status_code}"
        if error.status_code == 401:
            raise NotAnswered(f"{reply}; set OPENAI_API_KEY to a key of that server", is_unusable=True) from error
        raise NotAnswered(reply, is_unusable=error.status_code >= 500 and error.status_code != 501) from error
    except (APIConnectionError, httpx.HTTPError) as error:
        raise NotAnswered("no answer (is the server running?)", is_unusable=True) from error
    except (ValueError, RecursionError) as error:
        raise NotAnswered(f"GET {path} was not answered with JSON") from error


def _entries(answer: Any) -> tuple[list[dict[str, Any]], bool]:
    """The entries of a list of models, and whether it is complete. OpenAI's `data`, Ollama's `models`, or a plain list."""
    listed = answer.get("data") or answer.get("models") if isinstance(answer, dict) else answer
    entries = [{"id": each} if isinstance(each, str) else each for each in listed] if isinstance(listed, list) else []
    is_whole = not (isinstance(answer, dict) and (answer.get("has_more") or answer.get("nextPageToken")))
    return [entry for entry in entries if isinstance(entry, dict) and _names(entry)], is_whole


def _names(entry: dict[str, Any]) -> list[str]:
    names = [entry.get(key) for key in ("id", "name", "model", "canonical_slug")]
    aliases = entry.get("aliases")
    names += aliases if isinstance(aliases, list) else []
    return [name for name in names if isinstance(name, str) and name]


def _is_called(entry: dict[str, Any], model: str) -> bool:
    """Whether an entry is of the model, apart from a variant (`NAME:free`), tag or prefix."""
    model = model.removeprefix("models/")
    wanted = {model, f"{model}:latest", model.rpartition(":")[0]} - {""}
    names = [name.removeprefix("models/") for name in _names(entry)]
    return any(name in wanted or ("*" in name and fnmatchcase(model, name)) for name in names)


def _retrieved(client: Any, model: str) -> dict[str, Any] | None:
    """The model's own entry, which some servers have for models that they do not list."""
    try:
        answer = _get(client, f"/models/{quote(model, safe='/')}")
    except NotAnswered:
        return None
    return answer if isinstance(answer, dict) and _is_called(answer, model) else None


def _end_of(entry: dict[str, Any], model: str, url: str) -> str | None:
    today = datetime.now(UTC).date()
    ends, deprecated = (min(_dates(entry.get(name) for name in names), default=None) for names in (_ENDS, _DEPRECATED))
    if ends is not None and ends < today:
        raise InputError(f"{url} says that {model} was shut down on {ends}; give another model")
    if ends is not None:
        return f"{url} says that {model} will be shut down on {ends}, in {(ends - today).days} days."
    if deprecated is not None:
        return f"{url} says that {model} is deprecated from {deprecated} on: it may end soon."
    return None


def _dates(values: Iterable[Any]) -> Iterator[date]:
    """Read ISO dates and seconds since 1970. Azure has a dictionary of several dates, of which `inference` counts."""
    for value in values:
        day = value.get("inference") if isinstance(value, dict) else value
        try:
            if isinstance(day, str):
                yield date.fromisoformat(day[:10])
            elif isinstance(day, int | float) and day > 1:  # True is 1
                yield datetime.fromtimestamp(day, UTC).date()
        except (ValueError, OverflowError, OSError):  # words, or no date
            continue


def _nearest(model: str, entries: list[dict[str, Any]]) -> str:
    names = [" ".join(encodable(_names(entry)[0]).split()) for entry in entries]
    # The organisation in front of a name says little: servers leave it out.
    likeness = {name: difflib.SequenceMatcher(None, model.lower(), name.lower()).ratio() for name in names}
    ordered = sorted(likeness, key=lambda name: -likeness[name])
    more = len(ordered) - MOST_NAMES
    return ", ".join(ordered[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


@dataclass
class Replica:
    """One server, and how it has been doing."""

    url: str
    client: Any
    neutral: NeutralFields = field(default_factory=NeutralFields)
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0


class Replicas:
    """The servers of one model. The least loaded one gets a request; one that keeps failing gets none for a while."""

    def __init__(self, urls: Sequence[str], timeout_s: float):
        self._all = [Replica(url, make_client(url, timeout_s)) for url in urls]
        self._lock = threading.Lock()

    def look_up(self, model: str) -> None:
        """
        Find the model at each server that lists its models, and say on stderr when it ends.

        Raises:
            `InputError`: A server does not serve it.
        """
        for replica in self._all:
            with suppress(NotAnswered):
                if warning := look_up(model, replica.client, replica.url):
                    print(f"warning: {warning}", file=sys.stderr)

    def take(self, preferred: Replica | None, avoided: Replica | None) -> Replica:
        """
        Choose a server; `done` gives it back.

        Args:
            preferred (`Replica`, *optional*): Has the clip in its cache.
            avoided (`Replica`, *optional*): Just failed this request: only chosen if there is no other.
        """
        with self._lock:
            now = time.monotonic()
            fit = [r for r in self._all if r.failures < FAILURES_BEFORE_REST or (now >= r.rests_until and not r.in_flight)]
            if preferred in fit and preferred is not avoided:
                fit = [preferred]
            chosen = min(fit or self._all, key=lambda replica: (replica is avoided, replica.in_flight))
            chosen.in_flight += 1
            return chosen

    def done(self, replica: Replica, is_well: bool | None) -> None:
        """Give a server back. `is_well`: whether it works; None where its answer does not show that."""
        with self._lock:
            replica.in_flight -= 1
            if is_well:
                replica.failures = 0
            elif is_well is not None:
                replica.failures += 1
                replica.rests_until = time.monotonic() + delay_s(max(0, replica.failures - FAILURES_BEFORE_REST))


@dataclass
class LookUpArguments:
    model: str = field(metadata={"help": "its name at the server"})
    base_url: list[str] = field(metadata={"help": "OpenAI-compatible server; several are replicas"})


def main() -> None:
    args = parse_arguments(LookUpArguments, __doc__)
    for line in look_up_all(args.model, args.base_url, is_needed=True):
        print(line)


if __name__ == "__main__":
    run(main)

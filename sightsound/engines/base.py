"""
What a request to a model is, what its result is, and what an engine has to do: n completions per request.

All engines take the same `ChatRequest` and give the same `ChatResult`, so that a stage works with any of them. `run_requests`
(`runner.py`) drives an engine, journals what is finished and continues after a kill. `engines/__init__.py` says how to add one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sightsound.data.frames import Frames
from sightsound.data.schema import RowError
from sightsound.engines.request_fields import RequestOptions


@dataclass(frozen=True)
class ChatRequest:
    """
    One user turn.

    Args:
        key (`str`): Identifies the request in the journal.
        text (`str`): The user's text.
        audio (`np.ndarray`, *optional*): `(num_samples,)` at 16 kHz, already cut to the engine's `window_s`.
        video (`Frames`, *optional*): Frames of a silent video.
        note (`dict`): Journaled with the result, never sent.
        reply_schema (`dict`, *optional*): JSON schema of the reply, for a server's `response_format`; a model in this process
            ignores it.
    """

    key: str
    text: str
    audio: np.ndarray | None = None
    video: Frames | None = None
    note: dict[str, Any] = field(default_factory=dict)
    reply_schema: dict[str, Any] | None = None

    @property
    def media(self) -> tuple[str, ...]:
        """The kinds of its clips, in the order in which they come before the text."""
        return tuple(kind for kind, clip in (("audio", self.audio), ("video", self.video)) if clip is not None)

    @property
    def fps(self) -> float | None:
        """Frame rate of its video."""
        return None if self.video is None else self.video.metadata()["fps"]


@dataclass(frozen=True)
class Sampling:
    """`n` completions at `temperature` (0 is greedy) of at most `max_tokens` tokens each; `seed` fixes what is drawn."""

    n: int
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is `"stop"`, `"length"` when the token limit cut the text, or another word of a server (`"refusal"`)."""

    text: str
    finish_reason: str


@dataclass(frozen=True)
class Usage:
    """Tokens of one request as the engine counts them; `cached_tokens` came from the server's cache (None: not reported)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True)
class ChatResult:
    """
    The completions of one request and the exact prompt that they answer, or the reason why there are none.

    Args:
        outcome (`str`, *optional*), detail (`str`, *optional*): Of the `RowError`: the ledger's word, and what was seen.
        was_sent (`bool`): False when the clip could not be read.
        sampling (`dict`, *optional*): From `sampling.effective`; None where nothing was drawn.
    """

    key: str
    prompt: str
    completions: list[Completion]
    outcome: str | None = None
    detail: str | None = None
    usage: Usage | None = None
    was_sent: bool = True
    sampling: dict[str, Any] | None = None

    @classmethod
    def without_clip(cls, key: str, error: RowError) -> ChatResult:
        """Of a request that was not built, because its clip cannot be read."""
        return cls(key, "", [], error.outcome, str(error), was_sent=False)


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """
    What the flags of a command say about its engine.

    Args:
        model (`str`): Local folder or Hub id, or the name under which `base_url` serves the model.
        sampling (`Sampling`): Of the command's first requests.
        base_url (`str` or `Sequence[str]`, *optional*): Servers of the model; None for a model in this process.
        batch_size (`int`): Sequences generated at once in this process.
        concurrency (`int`): Requests in flight at the servers.
        timeout_s (`float`, *optional*): Of a request, seconds.
        prime (`bool`): See `OpenAIEngine`.
        batches (`Path`, *optional*): The record of batches, for a command that uses the Batch API.
        options (`RequestOptions`): Changes to the request fields that the servers need.
        revision (`str`, *optional*): Commit of a model on the Hub.
        base_model (`str`, *optional*): Where the base of a LoRA is now, if it was moved.
    """

    model: str
    sampling: Sampling
    base_url: str | Sequence[str] | None = None
    batch_size: int = 1
    concurrency: int = 1
    timeout_s: float | None = None
    prime: bool = False
    batches: Path | None = None
    options: RequestOptions = field(default_factory=RequestOptions)
    revision: str | None = None
    base_model: str | None = None

    @property
    def base_urls(self) -> list[str]:
        return [self.base_url] if isinstance(self.base_url, str) else list(self.base_url or [])


class Engine(Protocol):
    """
    What `run_requests` needs.

    Samples may depend on the other requests in the same call. So an interrupted call is repeated with the same requests.

    Attributes:
        requests_per_call (`int`): Requests in a call.
        window_s (`float`, *optional*): The caller cuts longer sounds to it, seconds; None for no limit.
        revision (`str`): Commit or fingerprint of the model, written to the rows.
    """

    requests_per_call: int
    window_s: float | None
    revision: str

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]: ...


@runtime_checkable
class StreamingEngine(Protocol):
    """
    An engine that answers each request independently, and builds requests when it can send them.

    `stream` takes keys in groups that share a clip, and yields results as they are finished. The caller journals what was
    yielded before it takes the next results.
    """

    num_retries: int

    def stream(
        self, groups: Iterable[Sequence[str]], build: Callable[[str], ChatRequest], sampling: Sampling
    ) -> Iterator[list[ChatResult]]: ...


def seed_of(seed: int, keys: Sequence[str]) -> int:
    """A seed for these requests, so that they draw the same completions whenever they are made again together."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()[:4], "big")

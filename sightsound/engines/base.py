"""
Ask a model: n completions per request, from an in-process transformers model or an OpenAI-compatible server.

Both engines take the same `ChatRequest` and give the same `ChatResult`, so a stage does not know which one it talks to.
`run_requests` drives either, journals what is finished and continues after a kill.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sightsound.data.frames import Frames


@dataclass(frozen=True)
class ChatRequest:
    """
    One user turn.

    Args:
        key (`str`): Identifies the request in the journal.
        text (`str`): The user's text.
        audio (`np.ndarray`, *optional*): `(num_samples,)` at 16 kHz, already cut to the engine's `window_s`.
        video (`Frames`, *optional*): Frames of a silent video.
        note (`dict`): Anything the stage wants back with the result; journaled, never sent.
    """

    key: str
    text: str
    audio: np.ndarray | None = None
    video: Frames | None = None
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[str, ...]:
        """The kinds of its clips, in the order in which they come before the text."""
        return tuple(kind for kind, clip in (("audio", self.audio), ("video", self.video)) if clip is not None)


@dataclass(frozen=True)
class Sampling:
    """`n` completions at `temperature` (0 is greedy) of at most `max_tokens` tokens; `seed` fixes the draw."""

    n: int
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is `"stop"`; `"length"` when the token limit cut the text; a server has more, such as `"refusal"`."""

    text: str
    finish_reason: str


@dataclass(frozen=True)
class Usage:
    """Tokens of one request as the server counts them; `cached_tokens` came from its cache (None: not reported)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True)
class ChatResult:
    """
    The completions of one request and the exact prompt that they answer; or an `outcome` that says why there are none, with
    what was seen in `detail`. `was_sent` is False when the clip could not be read. `sampling` is what `sampling.effective`
    records of the request; None where nothing was drawn.
    """

    key: str
    prompt: str
    completions: list[Completion]
    outcome: str | None = None
    detail: str | None = None
    usage: Usage | None = None
    was_sent: bool = True
    sampling: dict[str, Any] | None = None


class Engine(Protocol):
    """
    What `run_requests` needs.

    `window_s`: longer sounds must be cut by the caller; None when the engine says nothing. What a request draws may depend on
    the others of its call, so a call is only ever made with all its members: `requests_per_call` of them.
    """

    requests_per_call: int
    window_s: float | None
    revision: str

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]: ...


@runtime_checkable
class StreamingEngine(Protocol):
    """
    An engine that answers each request by itself and has requests built when it can send them.

    `stream` takes keys in groups that share a clip, and yields results as they are finished. A result that was yielded is
    journaled before the next one is asked for.
    """

    num_retries: int

    def stream(
        self, groups: Iterable[Sequence[str]], build: Callable[[str], ChatRequest], sampling: Sampling
    ) -> Iterator[list[ChatResult]]: ...


def seed_of(seed: int, keys: Sequence[str]) -> int:
    """A seed for these requests alone, so that a batch draws the same completions whenever it is (re)run."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()[:4], "big")

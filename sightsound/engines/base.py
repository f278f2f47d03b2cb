"""
Ask a model: n completions per request, from an in-process transformers model or an OpenAI-compatible server.

Both engines take the same `ChatRequest` and give the same `ChatResult`, so a stage does not know which one it talks to.
`run_requests` drives either, journals what is finished and continues after a kill.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.frames import Frames
from sightsound.data.schema import REFUSED
from sightsound.engines.progress import RequestProgress
from sightsound.engines.request_fields import FLAGS_OF_REMEDY, RequestOptions
from sightsound.stage import Journal


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


def make_engine(
    model: str,
    base_url: str | Sequence[str] | None,
    batch_size: int,
    concurrency: int,
    sampling: Sampling,
    timeout_s: float | None = None,
    prime: bool = False,
    batches: Path | None = None,
    options: RequestOptions = RequestOptions(),  # noqa: B008 - frozen
    revision: str | None = None,
) -> Engine:
    """
    `OpenAIEngine` when one `base_url` or several are given, else `TransformersEngine`; with `batches`, the file that records
    them, `OpenAIBatchEngine` at the first `base_url`. `options` are what its requests hold otherwise, `revision` is of a model
    in this process: `generator.load_generator`.
    """
    if not base_url:
        from sightsound.engines.transformers import TransformersEngine

        return TransformersEngine.load(model, batch_size, sampling, revision)
    from sightsound.engines.openai import TIMEOUT_S, OpenAIEngine
    from sightsound.engines.openai_batch import OpenAIBatchEngine

    urls = [base_url] if isinstance(base_url, str) else base_url
    if batches is not None:
        return OpenAIBatchEngine(model, urls[0], batches, timeout_s or TIMEOUT_S, options=options)
    return OpenAIEngine(model, urls, concurrency, timeout_s or TIMEOUT_S, prime, options)


# Stop after more consecutive clips without an answer than this: the server is misconfigured.
MAX_UNANSWERED = 20


def run_requests(
    engine: Engine,
    keys: Sequence[str],
    build: Callable[[str], ChatRequest],
    sampling: Sampling,
    journal: Journal,
    description: str,
    clip_of: Callable[[str], str] | None = None,
    block_of: Callable[[str], int] | None = None,
    is_part: bool = False,
    check: Callable[[Journal], None] = lambda _: None,
    may_refuse: Callable[[str], bool] | None = None,
) -> None:
    """
    Make every request that the journal lacks; results and failures are journaled as they come.

    Without a `StreamingEngine` calls are cut from the full list of keys, whatever is journaled already: an interrupted call
    is repeated with the same members and so draws the same completions.

    Args:
        keys (`Sequence[str]`): All requests of the stage, in order.
        build (`Callable`): Key to request; a server's engine calls it from several threads. A `MediaError` is journaled as
            the request's outcome.
        description (`str`): For the progress bar.
        clip_of (`Callable`, *optional*): Key to clip, for several requests about one clip: they should follow each other in
            `keys`, and are sent one after the other, so that the server finds the clip in its prefix cache.
        block_of (`Callable`, *optional*): Key to block, of consecutive `keys`: no call has members of two. Where a part of a
            stage's questions is whole blocks, it makes the calls that all questions together would.
        is_part (`bool`): `keys` are a rank's share, and may happen to be the few that the server refuses.
        may_refuse (`Callable`, *optional*): Whether the server may refuse a key and all like it. Once it has answered others,
            their refusals are outcomes and never stop the stage.
        check (`Callable`, *optional*): Called with the journal at the start and whenever it has grown; an `InputError` stops
            the run, once what is in flight is journaled.

    The journal then holds, per key, `{"prompt", "completions": [{"text", "finish_reason"}], **note}`, with `usage` where the
    server reports it and `sampling` where the engine records it, or `{"outcome", "detail"}`.
    """
    check(journal)
    missing = [key for key in keys if key not in journal]
    failure: InputError | None = None
    if isinstance(engine, StreamingEngine):
        feed = _Feed([list(group) for _, group in groupby(missing, clip_of or str)])
    else:
        blocks = [list(block) for _, block in groupby(keys, block_of or (lambda _: 0))]
        size = engine.requests_per_call
        feed = _Feed([block[start : start + size] for block in blocks for start in range(0, len(block), size)])
    held: list[ChatResult] = []  # failures since the last answer

    def num_clips_held() -> int:  # all traces of one bad clip are refused, and follow each other
        return len({(clip_of or str)(result.key) for result in held})

    def is_expected(result: ChatResult) -> bool:
        if may_refuse is None or result.outcome != REFUSED or not may_refuse(result.key):
            return False
        return any("completions" in entry for entry in journal.entries.values())

    with RequestProgress(len(keys), len(keys) - len(missing), description) as progress:
        while not feed.is_empty:
            feed.is_open = True
            if isinstance(engine, StreamingEngine):
                parts = _streamed(engine, feed, build, sampling)
            else:
                parts = _called(engine, feed, journal, build, sampling)
            for notes, results in parts:
                failed = [r for r in results if r.outcome and r.was_sent and not is_expected(r)]
                settled = [result for result in results if result not in failed]
                if any(result.completions for result in settled):
                    settled, held = settled + held, failed
                else:
                    held += failed
                num_new = sum(result.key not in journal for result in settled)  # a repeated call has journaled members
                journal.append((result.key, _entry(result) | notes.get(result.key, {})) for result in settled)
                progress.add(num_new, results, getattr(engine, "num_retries", 0))
                try:
                    check(journal)
                except InputError as error:
                    failure = error
                # Refusals come at once and answers take minutes: what is in flight may be one, and is paid for.
                # It stays closed until all is answered: an engine whose senders have ended needs new ones.
                feed.is_open = feed.is_open and failure is None and num_clips_held() <= MAX_UNANSWERED
            if failure is not None:
                raise failure
            # A server that has not answered a single request does not dislike this one: it is set up for something else.
            is_useless = not is_part and not any("completions" in entry for entry in journal.entries.values())
            # Ranks share a folder, and batches are recorded beside the journal.
            is_kept = not is_useless or getattr(engine, "keeps_records", False)
            if held and (num_clips_held() > MAX_UNANSWERED or (feed.is_empty and is_useless)):
                raise InputError(f"the server answers no request: {held[0].detail}; {_what_next(held[0].detail, is_kept)}")
        journal.append((result.key, _entry(result)) for result in held)
        progress.add(len(held), [], getattr(engine, "num_retries", 0))


def _what_next(detail: str | None, is_kept: bool) -> str:
    """
    The remedy after the server stopped answering. Other fields in the requests are other settings: a folder that keeps
    anything refuses them.
    """
    if not is_kept:
        return "nothing was answered, so the corrected command can use the same --output_dir"
    if detail and (flags := FLAGS_OF_REMEDY.search(detail)):
        return f"the folder keeps what was made without that flag: delete the folder and start again with {flags[1]}"
    return "finished requests are kept, rerun to continue"


class _Feed:
    """Groups of requests for an engine to take; while it is closed it looks like its end."""

    def __init__(self, groups: list[list[str]]):
        self._groups = deque(groups)
        self.is_open = True

    @property
    def is_empty(self) -> bool:
        return not self._groups

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        if not self.is_open or not self._groups:
            raise StopIteration
        return self._groups.popleft()


Part = tuple[dict[str, dict[str, Any]], list[ChatResult]]  # notes of the requests by key, and results


def _streamed(
    engine: StreamingEngine, groups: Iterable[list[str]], build: Callable[[str], ChatRequest], sampling: Sampling
) -> Iterator[Part]:
    notes: dict[str, dict[str, Any]] = {}

    def build_noted(key: str) -> ChatRequest:
        request = build(key)
        notes[key] = request.note
        return request

    for results in engine.stream(groups, build_noted, sampling):
        yield {result.key: notes.pop(result.key, {}) for result in results}, results


def _called(
    engine: Engine, calls: Iterable[list[str]], journal: Journal, build: Callable[[str], ChatRequest], sampling: Sampling
) -> Iterator[Part]:
    for call in calls:
        if all(key in journal for key in call):
            continue
        requests: list[ChatRequest] = []
        unread: list[ChatResult] = []
        for key in call:
            try:
                requests.append(build(key))
            except MediaError as error:
                unread.append(ChatResult(key, "", [], error.outcome, str(error), was_sent=False))
        yield {}, unread
        if requests:
            notes = {request.key: request.note for request in requests}
            for results in engine.complete(requests, sampling):
                yield notes, results


def _entry(result: ChatResult) -> dict[str, Any]:
    if result.outcome:
        return {"outcome": result.outcome, "detail": result.detail}
    usage = {} if result.usage is None else {"usage": asdict(result.usage)}
    drawn = {} if result.sampling is None else {"sampling": result.sampling}
    return {"prompt": result.prompt, "completions": [asdict(completion) for completion in result.completions], **usage, **drawn}

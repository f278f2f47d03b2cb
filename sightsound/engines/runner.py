"""Make the requests of a stage with any engine; journal what is finished and continue after a kill."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from sightsound.engines.base import ChatResult

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import groupby

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import REFUSED
from sightsound.engines.base import ChatRequest, ChatResult, Engine, Sampling, StreamingEngine
from sightsound.engines.request_fields import FLAGS_OF_REMEDY
from sightsound.stage import Journal


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


class RequestProgress:
    """A progress bar: rows per second and time left; tokens per second and the cached share of prompts where they are told."""

    def __init__(self, total: int, done: int, description: str):
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=done, desc=description, unit="row", mininterval=1.0)
        self._started = time.monotonic()
        self._written = self._prompted = self._cached = 0

    def __enter__(self) -> RequestProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def add(self, num_new: int, came: Sequence[ChatResult], num_retries: int) -> None:
        for usage in (result.usage for result in came if result.usage is not None):
            self._written += usage.completion_tokens
            if usage.cached_tokens is not None:
                self._prompted += usage.prompt_tokens
                self._cached += usage.cached_tokens
        told = {}
        if self._written:
            told["tokens/s"] = f"{self._written / max(1e-9, time.monotonic() - self._started):.0f}"
        if self._prompted:
            told["cached"] = f"{100 * self._cached / self._prompted:.0f}%"
        if num_retries:
            told["retries"] = str(num_retries)
        self._bar.set_postfix(told, refresh=False)
        self._bar.update(num_new)

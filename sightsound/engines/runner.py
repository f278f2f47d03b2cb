"""Make the requests of a stage with any engine; journal what is finished and continue after a kill."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

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
    is_optional: Callable[[str], bool] = lambda _: False,
) -> None:
    """
    Make every request that the journal lacks; completions and outcomes are journaled as they come.

    Without a `StreamingEngine`, calls are cut from the full list of keys, whatever is journaled already. So an interrupted call
    is repeated with the same members, and samples the same completions.

    The journal then has, per key, `{"prompt", "completions": [{"text", "finish_reason"}], **note}`, with `usage` where the
    engine counts tokens and `sampling` where it records it; or `{"outcome", "detail"}`.

    Args:
        keys (`Sequence[str]`): All requests of the stage, in order.
        build (`Callable`): Key to request; the engine of a server calls it from several threads. A `MediaError` is the
            request's outcome.
        description (`str`): For the progress bar.
        clip_of (`Callable`, *optional*): Key to clip. Requests about one clip are consecutive in `keys`, and are sent one
            after the other, so that the server finds the clip in its prefix cache.
        block_of (`Callable`, *optional*): Key to block. No call has members of two blocks, so a rank with whole blocks makes
            the same calls as a run of all questions.
        is_part (`bool`): `keys` are a rank's share, which may be the few requests that the server refuses.
        check (`Callable`): Called with the journal at the start and whenever it has grown. An `InputError` stops the run, once
            the answers to requests in flight are journaled.
        is_optional (`Callable`): Key -> whether the server may refuse it and all like it. Once the server has answered other
            requests, such refusals are outcomes and never stop the stage.

    Raises:
        `InputError`: The server answers no request, or `check` raised it.
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
    held: list[ChatResult] = []  # results without an answer since the last answer

    def num_clips_held() -> int:  # requests about one bad clip all fail, one after the other
        return len({(clip_of or str)(result.key) for result in held})

    def is_expected(result: ChatResult) -> bool:
        if result.outcome != REFUSED or not is_optional(result.key):
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
                failed: list[ChatResult] = []
                settled: list[ChatResult] = []
                for result in results:
                    (failed if result.outcome and result.was_sent and not is_expected(result) else settled).append(result)
                if any(result.completions for result in settled):
                    settled, held = settled + held, failed
                else:
                    held += failed
                num_new = sum(result.key not in journal for result in settled)  # members of a repeated call may be journaled
                journal.append((result.key, _entry(result) | notes.get(result.key, {})) for result in settled)
                progress.add(num_new, results, getattr(engine, "num_retries", 0))
                try:
                    check(journal)
                except InputError as error:
                    failure = error
                # Refusals come at once, answers take minutes: requests in flight may be answered, and are paid for. No
                # more are sent until all of these have ended. Then the engine starts again, as its senders have ended.
                feed.is_open = feed.is_open and failure is None and num_clips_held() <= MAX_UNANSWERED
            if failure is not None:
                raise failure
            # If no request at all is answered, the failures are not about single requests: the server is set up for others.
            is_useless = not is_part and not any("completions" in entry for entry in journal.entries.values())
            # Nothing is deleted where ranks share the folder, or where batches are recorded beside the journal.
            is_kept = not is_useless or getattr(engine, "keeps_records", False)
            if held and (num_clips_held() > MAX_UNANSWERED or (feed.is_empty and is_useless)):
                raise InputError(f"the server answers no request: {held[0].detail}; {_remedy(held[0].detail, is_kept)}")
        journal.append((result.key, _entry(result)) for result in held)
        progress.add(len(held), [], getattr(engine, "num_retries", 0))


def _remedy(detail: str | None, is_kept: bool) -> str:
    """
    What to do after the server stopped answering. Flags that change the requests are settings of the stage, which a folder with
    results does not accept.
    """
    if not is_kept:
        return "nothing was answered, so the corrected command can use the same --output_dir"
    if detail and (flags := FLAGS_OF_REMEDY.search(detail)):
        return f"the folder has results that were made without that flag: delete the folder and start again with {flags[1]}"
    return "finished requests are kept, rerun to continue"


class _Feed:
    """Groups of requests for an engine to take. While the feed is closed, the engine sees its end."""

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
                unread.append(ChatResult.without_clip(key, error))
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
    """A progress bar: rows per second, time left and, where known, tokens per second and the cached share of prompts."""

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

    def add(self, num_new: int, results: Sequence[ChatResult], num_retries: int) -> None:
        for usage in (result.usage for result in results if result.usage is not None):
            self._written += usage.completion_tokens
            if usage.cached_tokens is not None:
                self._prompted += usage.prompt_tokens
                self._cached += usage.cached_tokens
        figures = {}
        if self._written:
            figures["tokens/s"] = f"{self._written / max(1e-9, time.monotonic() - self._started):.0f}"
        if self._prompted:
            figures["cached"] = f"{100 * self._cached / self._prompted:.0f}%"
        if num_retries:
            figures["retries"] = str(num_retries)
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(num_new)

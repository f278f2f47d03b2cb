"""
Make requests to OpenAI-compatible servers: several replicas, bounded concurrency, and a policy for every kind of failure.

What happens to a request after a failure:

- 429 means "later": the request is made again, after `Retry-After` where the server gives it. A request that gets only 429 is
  deferred until the others have been sent. If it then still gets only 429 although other requests were answered since it was
  first sent, 429 is its outcome: then it is too large for the rate limit.
- After any other failure that may pass (500, 502, 503, 504, a reset connection, no answer within `timeout_s`, a body that is
  not a chat completion) the request is made again, up to `TRIES` times; then the failure is its outcome. If no request is
  answered by any server, that is an outage: the run waits for its end, up to `PATIENCE_S`.
- 400, 413 and 422 refuse this request alone: that is its outcome at once. The exception is a refusal of a sampling field that
  only some servers know (see `sampling.NeutralFields`): the request is made again without the field.
- Any other failure (401, 403, 404: the key, the address, the name of the model) will not pass: the run stops at once.

The retries of the openai client do not serve for this: they see one request and one server, and cannot tell an outage or a rate
limit from a request that always fails. A run that stops keeps the answers to requests in flight, because they are paid for.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import BAD_RESPONSE
from sightsound.data.sources import shown_source
from sightsound.engines.base import ChatRequest, ChatResult, Completion, EngineFlags, Sampling, Usage
from sightsound.engines.openai_models import Replica, Replicas, is_alive
from sightsound.engines.openai_protocol import (
    RequestFailure,
    content_of,
    delay_s,
    failure_of_connection,
    failure_of_status,
    request_body,
)
from sightsound.engines.openai_replies import read_reply
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.sampling import effective
from sightsound.models.origins import served_window_s


# Long enough for n = 8 long traces behind a queue of hundreds at a busy server. A server that takes longer hangs.
TIMEOUT_S = 600.0
TRIES = 6  # five waits of 0.5 to 8 s
# So many 429 in a row after a request was deferred. Their waits add up to a minute, the period of rate limits.
BUSY_TRIES = 8
# How long all requests may stay unanswered before the run stops. Before the first answer the address is probably wrong.
PATIENCE_S, FIRST_PATIENCE_S = 600.0, 15.0

# Limits of a reply. Tokens are far shorter: 16 characters, each escaped as \uXXXX, are 96 bytes.
BYTES_PER_TOKEN, BYTES_PER_RESPONSE = 256, 1 << 20
# Longest completion where the request leaves the limit to the server.
MOST_TOKENS = 1 << 17
SIGNALS_AFTER_S = 0.5  # how long the main thread waits before it looks for Ctrl-C

# A result (None when the run stopped first), and the server that gave it.
Answered = tuple[ChatResult | None, Replica | None]


@dataclass(frozen=True)
class _Prepared:
    """A request with its media encoded. `answers_before`: how many answers there were when it was first sent, if deferred."""

    prompt: str
    content: list[Any]
    fps: float | None
    answers_before: int | None
    reply_schema: dict[str, Any] | None = None


@dataclass
class _Run:
    """What the workers of one call of `stream` share."""

    sampling: Sampling
    build: Callable[[str], ChatRequest]
    groups: Iterator[Sequence[str]]
    slots: threading.Semaphore
    num_workers: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)
    results: queue.SimpleQueue[ChatResult | Exception | None] = field(default_factory=queue.SimpleQueue)
    last_answer: float | None = None
    num_answers: int = 0
    failed_since: float | None = None  # since when no request has been answered
    num_fresh: int = 0  # requests in flight whose last reply was not 429
    # Deferred requests, and how many answers there were when each was first sent.
    deferred: deque[str] = field(default_factory=deque)
    answers_before: dict[str, int] = field(default_factory=dict)
    # Completions so far, where the n completions of a request are n requests.
    parts: defaultdict[str, list[ChatResult]] = field(default_factory=lambda: defaultdict(list))

    def answered(self) -> None:
        with self.lock:
            self.last_answer, self.num_answers, self.failed_since = time.monotonic(), self.num_answers + 1, None

    def count_fresh(self, change: int) -> None:
        with self.lock:
            self.num_fresh += change

    def defer(self, key: str, answers_before: int) -> None:
        with self.lock:
            self.answers_before[key] = answers_before
            self.deferred.append(key)

    def stop(self) -> None:
        """Send no more requests. Release the workers that wait, so that they can end."""
        self.stopped.set()
        self.slots.release(self.num_workers)

    def next_result(self) -> ChatResult | Exception | None:
        """
        Wait for a result.

        Not without a limit: a Ctrl-C that comes just before a wait is handled only when the wait ends, and the next result may
        take minutes.
        """
        while True:
            try:
                return self.results.get(timeout=SIGNALS_AFTER_S)
            except queue.Empty:
                continue

    def next_group(self) -> Sequence[str] | None:
        with self.lock:
            if self.stopped.is_set():
                return None
            group = next(self.groups, None)
            return [self.deferred.popleft()] if group is None and self.deferred else group


class _Deferred(Exception):
    """A request that gets only 429. It is made again after the other requests."""


class OpenAIEngine:
    """
    One or more servers of the same model, through the `openai` client.

    Audio is sent as `input_audio` (WAV). Frames are sent as vLLM's list of frames: one `video_url` of base64 images (lossless,
    so that the server gets the pixels that the in-process engine gets), with the frame rate in `media_io_kwargs` and
    `mm_processor_kwargs`, which vLLM accepts when it is started with `--trust-request-mm-kwargs`. For other servers each frame
    is an `image_url`, without the frame rate. The key comes from `OPENAI_API_KEY`. Before the first request the model is looked
    up at its servers.

    At most `concurrency` requests are in flight or not journaled yet, and as many wait with their clips decoded. At most one
    clip per processor is decoded at a time.

    Args:
        model (`str`): The name under which the servers serve the model.
        base_urls (`str` or `Sequence[str]`): Such as `http://localhost:8000/v1`; several are replicas.
        concurrency (`int`): Requests in flight at once, over all replicas.
        timeout_s (`float`): A request fails after so many seconds without a byte of its answer.
        prime (`bool`): Before a request with n > 1, make the same request for one token. vLLM computes a prompt once for its
            n sequences only while the clips of all requests that it admits fit its encoder cache (as many tokens as
            `--max-num-batched-tokens`); beyond that each sequence computes the prompt again, unless it is in the prefix
            cache. Not for a server that bills every prompt.
        options (`RequestOptions`): Changes to the request fields that the servers need. Where `n` is omitted, n completions are
            n requests, one after the other, each with its own seed. They are one result, and all are made again after a kill
            between them.
    """

    requests_per_call = 1

    def __init__(
        self,
        model: str,
        base_urls: str | Sequence[str],
        concurrency: int,
        timeout_s: float = TIMEOUT_S,
        prime: bool = False,
        options: RequestOptions = RequestOptions(),  # noqa: B008 - frozen
    ):
        self.model, self._options, self._is_looked_up = model, options, False
        self.window_s: float | None = served_window_s(model)
        summary = options.summary()
        self.revision = f"{shown_source(model)} at its server" + (f" ({summary})" if summary else "")
        self._concurrency = concurrency
        self._timeout_s, self._prime = timeout_s, prime
        self.num_retries = 0
        self._replicas = Replicas([base_urls] if isinstance(base_urls, str) else base_urls, timeout_s)
        self._builders = threading.Semaphore(os.cpu_count() or 1)

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        """`stream` for requests that are built already."""
        built = {request.key: request for request in requests}
        return self.stream([[key] for key in built], built.__getitem__, sampling)

    def stream(
        self, groups: Iterable[Sequence[str]], build: Callable[[str], ChatRequest], sampling: Sampling
    ) -> Iterator[list[ChatResult]]:
        """
        Build and send requests, `concurrency` at a time; results come in the order of their answers.

        Args:
            groups (`Iterable[Sequence[str]]`): Keys. Keys of one group share a clip and are sent one after the other to the
                same replica, which then has the clip in its prefix cache.
            build (`Callable`): Key to request; called from several threads. A `MediaError` is the request's outcome.

        Raises:
            `InputError`: The servers cannot be used, or no longer. Answers to requests in flight have been yielded before.
        """
        self._look_up()
        # Half of them send while the others have the next requests ready.
        run = _Run(sampling, build, iter(groups), threading.Semaphore(self._concurrency), 2 * self._concurrency)
        for _ in range(run.num_workers):
            threading.Thread(target=self._work, args=(run,), daemon=True).start()
        failure: Exception | None = None
        num_running = run.num_workers
        try:
            while num_running:
                came = [run.next_result()]
                while not run.results.empty():
                    came.append(run.results.get())
                num_running -= sum(each is None for each in came)
                failure = failure or next((each for each in came if isinstance(each, Exception)), None)
                if failure is not None:
                    run.stop()
                results = [each for each in came if isinstance(each, ChatResult)]
                if results:
                    yield results
                # Only now is it journaled: a kill before this point costs no more than `concurrency` answers.
                for _ in range(sum(result.was_sent for result in results)):
                    run.slots.release()
        finally:
            run.stop()
        if failure is not None:
            raise failure

    def _look_up(self) -> None:
        if not self._is_looked_up:
            self._replicas.look_up(self.model)
            self._is_looked_up = True

    def _work(self, run: _Run) -> None:
        try:
            while (group := run.next_group()) is not None:
                self._answer_group(group, run)
        except Exception as error:  # noqa: BLE001 - crosses to the thread that drives the run, which raises it
            run.stop()
            run.results.put(error)
        finally:
            run.results.put(None)

    def _answer_group(self, group: Sequence[str], run: _Run) -> None:
        replica = None
        for key in group:
            try:
                with self._builders:
                    built = run.build(key)
                    content = content_of(built, self._options)
            except MediaError as error:
                run.results.put(ChatResult.without_clip(key, error))
                continue
            request = _Prepared(built.text, content, built.fps, run.answers_before.get(key), built.reply_schema)
            del built  # its frames need much memory
            run.slots.acquire()
            num_answers = run.num_answers
            try:
                if self._prime and run.sampling.n > 1:
                    _, replica = self._answer(key, request, replace(run.sampling, n=1, max_tokens=1), replica, run)
                if "n" in self._options.omitted:
                    result, replica = self._answer_one_by_one(key, request, replica, run)
                else:
                    result, replica = self._answer(key, request, run.sampling, replica, run)
            except _Deferred:
                # Its own parts that were answered do not count as answers to others.
                run.defer(key, num_answers + len(run.parts.get(key, ())))
                run.slots.release()
                continue
            if result is None:
                run.slots.release()
                return
            run.results.put(result)

    def _answer_one_by_one(self, key: str, request: _Prepared, replica: Replica | None, run: _Run) -> Answered:
        """The n completions of a request from n requests. If one fails, its failure is the outcome."""
        sampling, parts = run.sampling, run.parts[key]
        for i in range(len(parts), sampling.n):
            part, replica = self._answer(f"{key}#{i}" if i else key, request, replace(sampling, n=1), replica, run)
            if part is None or part.outcome is not None:
                return part if part is None else replace(part, key=key), replica
            parts.append(part)
        del run.parts[key]
        usages = [part.usage for part in parts if part.usage is not None]
        total = Usage(sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)) if usages else None
        completions = [part.completions[0] for part in parts]
        return ChatResult(key, request.prompt, completions, usage=total, sampling=parts[0].sampling), replica

    def _answer(self, key: str, request: _Prepared, sampling: Sampling, preferred: Replica | None, run: _Run) -> Answered:
        """
        Make a request until there is a result; None when the run stops first.

        Raises:
            `_Deferred`: It should be made again after the others.
        """
        started, tries, avoided, answers_before = time.monotonic(), 0, None, request.answers_before
        num_busy, num_answers, is_fresh = 0, run.num_answers, answers_before is None
        for attempt in itertools.count():
            if run.stopped.is_set():
                return None, None
            replica, is_well = self._replicas.take(preferred, avoided), None
            run.count_fresh(is_fresh)
            try:
                completions, usage, drawn = self._send(replica, key, request, sampling, replica.neutral.offered())
                is_well = True
                run.answered()
                return ChatResult(key, request.prompt, completions, usage=usage, sampling=drawn), replica
            except RequestFailure as error:
                is_well = None if error.is_final or error.is_busy else False
                failure = error
            finally:
                self._replicas.done(replica, is_well)
                run.count_fresh(-is_fresh)
            is_fresh = not failure.is_busy
            since = max(started, run.last_answer or 0.0)
            is_outage = failure.is_busy or (failure.is_down and since == started and not is_alive(replica.client))
            tries += not is_outage
            is_too_large = False
            if failure.is_busy:
                # This request may be waiting for a long answer to another one, but not for one that gets 429 too.
                may_wait = run.num_fresh > 0
                num_busy = num_busy + (not may_wait) if num_answers == run.num_answers else 0
                num_answers = run.num_answers
                is_too_large = answers_before is not None and num_answers > answers_before and num_busy >= BUSY_TRIES
            if failure.is_final or is_too_large or (tries >= TRIES and not is_outage):
                if not failure.outcome:
                    raise InputError(f"{failure}; finished requests are kept, rerun to continue")
                return ChatResult(key, request.prompt, [], failure.outcome, str(failure)), replica
            if is_outage:
                # An outage begins at the end of its first attempt: an attempt that hung would leave no time for a second.
                began = run.failed_since = run.failed_since or time.monotonic()
                patience_s = FIRST_PATIENCE_S if run.last_answer is None and failure.is_unreachable else PATIENCE_S
                if time.monotonic() - began > patience_s:
                    raise InputError(f"{failure}; finished requests are kept, rerun to continue")
            if failure.is_busy and answers_before is None and attempt + 1 >= TRIES:
                raise _Deferred
            avoided = replica
            self.num_retries += 1
            run.stopped.wait(delay_s(attempt) if failure.retry_after_s is None else failure.retry_after_s)
        raise AssertionError("unreachable")

    def _send(
        self,
        replica: Replica,
        key: str,
        request: _Prepared,
        sampling: Sampling,
        neutral: dict[str, float],
    ) -> tuple[list[Completion], Usage | None, dict[str, Any]]:
        """One attempt, and what `sampling.effective` records of it; raises `RequestFailure` when it gives no completions."""
        import httpx2 as httpx  # what the openai client is built on
        from openai import APIConnectionError, APIStatusError

        sent = request_body(
            self.model, request.content, request.fps, sampling, key, self._options, neutral, request.reply_schema
        )
        most = sent.get("max_completion_tokens", sent.get("max_tokens"))
        limit = BYTES_PER_RESPONSE + BYTES_PER_TOKEN * sampling.n * (most if isinstance(most, int) else MOST_TOKENS)
        body = bytearray()
        try:
            with replica.client.chat.completions.with_streaming_response.create(
                model=self.model, messages=[], extra_body=sent
            ) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > limit:
                        size = f"more than {limit} bytes for {sampling.n} completions"
                        raise RequestFailure(BAD_RESPONSE, f"{replica.url} answered with {size}")
        except APIStatusError as error:
            fewer = replica.neutral.without(neutral, error)
            if fewer is not None:
                return self._send(replica, key, request, sampling, fewer)
            raise failure_of_status(error, replica.url) from error
        except (APIConnectionError, httpx.HTTPError) as error:
            raise failure_of_connection(error, replica.url, self._timeout_s) from error
        completions, usage = read_reply(bytes(body), sampling.n, replica.url)
        replica.neutral.settle(neutral)
        return completions, usage, effective(sent)


def make(flags: EngineFlags) -> OpenAIEngine:
    return OpenAIEngine(
        flags.model, flags.base_urls, flags.concurrency, flags.timeout_s or TIMEOUT_S, flags.prime, flags.options
    )

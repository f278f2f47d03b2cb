"""
Ask OpenAI-compatible servers: several replicas, bounded concurrency, and every way in which a server fails.

What happens to a request after a failure:

- 429 means "later": asked again, after `Retry-After` where the server gives one. A request that gets nothing else is put off
  until the others have been sent. Then 429 is its outcome, if the server has answered others since it was first sent, and
  answers no request while it is tried again: no rate limit is to blame.
- Any other passing failure (500, 502, 503, 504, a reset connection, no answer within `timeout_s`, a body that is not a chat
  completion) is asked again up to `TRIES` times; then it is the request's outcome. If no server answers any request,
  that is an outage: it is waited for, up to `PATIENCE_S`.
- 400, 413 and 422 refuse this request and not the next: its outcome at once. Not where they refuse a sampling field that only
  some servers know (see `sampling.NeutralFields`): the request is made again without it.
- Anything else (401, 403, 404: the key, the address, the model's name) will not get better: the run stops at once.

A run that stops keeps what was in flight: that was paid for.
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
from functools import partial
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import BAD_RESPONSE
from sightsound.data.sources import shown_source
from sightsound.engines.base import ChatRequest, ChatResult, Completion, Sampling, Usage
from sightsound.engines.openai_models import is_alive
from sightsound.engines.openai_protocol import (
    RequestFailure,
    content_of,
    delay_s,
    failure_of_connection,
    failure_of_status,
    request_body,
)
from sightsound.engines.openai_replicas import Replica, Replicas
from sightsound.engines.openai_replies import read_reply
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.sampling import effective


# Long enough for n = 8 long traces from a queue of hundreds at a busy server: what takes longer is a server that hangs.
TIMEOUT_S = 600.0
TRIES = 6  # five waits of 0.5 to 8 s
# So many 429 in a row after it was put off: without a hint of the server the waits are a minute, over which rates are counted.
BUSY_TRIES = 8
# How long all requests may stay unanswered before the run stops; less before the first answer: the address is probably wrong.
PATIENCE_S, FIRST_PATIENCE_S = 600.0, 15.0

# A completion of `max_tokens` is far shorter: tokens of 16 characters, each escaped as \uXXXX, are 96 bytes.
BYTES_PER_TOKEN, BYTES_PER_RESPONSE = 256, 1 << 20
# Of a completion whose limit the request leaves to the server.
MOST_TOKENS = 1 << 17


# A result, None when the run stopped first, and which server gave it.
Answered = tuple[ChatResult | None, Replica | None]


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
    failed_since: float | None = None  # since when nobody has been answered
    num_fresh: int = 0  # requests in flight whose last reply was no 429
    # Requests that were put off, and how many answers there had been when each was first sent.
    deferred: deque[str] = field(default_factory=deque)
    answers_before: dict[str, int] = field(default_factory=dict)
    # Completions so far of requests whose n completions are n requests.
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
        """Send nothing more. Workers that wait for a slot get one, and then end."""
        self.stopped.set()
        self.slots.release(self.num_workers)

    def next_group(self) -> Sequence[str] | None:
        with self.lock:
            if self.stopped.is_set():
                return None
            group = next(self.groups, None)
            return [self.deferred.popleft()] if group is None and self.deferred else group


class _Deferred(Exception):
    """A request that gets nothing but 429 makes room for others, and is tried once more after them."""


class OpenAIEngine:
    """
    One or more servers of the same model, through the `openai` client.

    Audio travels as `input_audio` (WAV); frames as vLLM's frame list, a `video_url` of base64 images (lossless, so that
    the server sees the pixels that the in-process engine would) with the frame rate in `media_io_kwargs`, which vLLM accepts
    when it is started with `--trust-request-mm-kwargs`; or, for other servers, as an `image_url` each, without the frame rate.
    The key comes from `OPENAI_API_KEY`. Before the first request the model is looked up at the servers that list theirs.

    At most `concurrency` requests are with the servers or answered and not journaled yet; so many more wait with their
    clips decoded. At most one clip per processor is being decoded.

    Args:
        model (`str`): The name under which the servers serve the model.
        base_urls (`str` or `Sequence[str]`): Such as `http://localhost:8000/v1`; several are replicas.
        concurrency (`int`): Requests in flight at once, over all replicas.
        timeout_s (`float`): Without a byte of an answer for so long, a request has failed.
        prime (`bool`): Before a request with n > 1, ask the same for one token. vLLM gives the n sequences of a request one
            prefill only while the clips of all requests that it lets in fit its encoder cache (as many tokens as
            `--max-num-batched-tokens`): beyond that each sequence computes the prompt by itself. With the prompt in the
            prefix cache none does. Not for a server that bills a prompt each time.
        options (`RequestOptions`): What the servers want otherwise. Where `n` is omitted, n completions are n requests, one
            after the other, each with its own seed; they are one result, and all made again after a kill between them.
    """

    # A server takes what it is sent; the 30 s of Whisper's encoder is the window of the models served in practice.
    window_s: float | None = 30.0
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
        summary = options.summary()
        self.revision = f"{shown_source(model)} at its server" + (f" ({summary})" if summary else "")
        self._concurrency = concurrency
        self._timeout_s, self._prime = timeout_s, prime
        self.num_retries = 0
        self._replicas = Replicas([base_urls] if isinstance(base_urls, str) else base_urls, timeout_s)
        self._builders = threading.Semaphore(os.cpu_count() or 1)

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        """`stream` for requests that are there already."""
        built = {request.key: request for request in requests}
        return self.stream([[key] for key in built], built.__getitem__, sampling)

    def stream(
        self, groups: Iterable[Sequence[str]], build: Callable[[str], ChatRequest], sampling: Sampling
    ) -> Iterator[list[ChatResult]]:
        """
        Build and send requests, `concurrency` at a time; results come in the order of their answers.

        Args:
            groups (`Iterable[Sequence[str]]`): Keys. Those of one group share a clip and are sent one after the other, to the
                same replica, which then has the clip in its prefix cache.
            build (`Callable`): Key to request; called from several threads. A `MediaError` is the request's outcome.

        Raises:
            `InputError`: The servers cannot be used, or no longer; what was in flight has been yielded before.
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
                came = [run.results.get()]
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
                    request = run.build(key)
                    content = content_of(request, self._options)
            except MediaError as error:
                run.results.put(ChatResult(key, "", [], error.outcome, str(error), was_sent=False))
                continue
            prompt, fps = request.text, None if request.video is None else request.video.metadata()["fps"]
            del request  # its frames; what is sent is in `content`
            run.slots.acquire()
            num_answers, answers_before = run.num_answers, run.answers_before.get(key)
            ask = partial(self._answer, prompt=prompt, content=content, fps=fps, run=run, answers_before=answers_before)
            try:
                if self._prime and run.sampling.n > 1:
                    _, replica = ask(key, sampling=replace(run.sampling, n=1, max_tokens=1), preferred=replica)
                if "n" in self._options.omitted:
                    result, replica = self._answer_one_by_one(key, ask, run, replica)
                else:
                    result, replica = ask(key, sampling=run.sampling, preferred=replica)
            except _Deferred:
                run.defer(key, num_answers + len(run.parts.get(key, ())))  # others were answered if there are more of them
                run.slots.release()
                continue
            if result is None:
                run.slots.release()
                return
            run.results.put(result)

    def _answer_one_by_one(
        self,
        key: str,
        ask: Callable[..., Answered],
        run: _Run,
        replica: Replica | None,
    ) -> Answered:
        """The n completions of a request from n requests; the first that fails is what becomes of all."""
        sampling, parts = run.sampling, run.parts[key]
        for i in range(len(parts), sampling.n):
            part, replica = ask(f"{key}#{i}" if i else key, sampling=replace(sampling, n=1), preferred=replica)
            if part is None or part.outcome is not None:
                return part if part is None else replace(part, key=key), replica
            parts.append(part)
        del run.parts[key]
        usages = [part.usage for part in parts if part.usage is not None]
        total = Usage(sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)) if usages else None
        completions = [part.completions[0] for part in parts]
        return ChatResult(key, parts[0].prompt, completions, usage=total, sampling=parts[0].sampling), replica

    def _answer(
        self,
        key: str,
        prompt: str,
        content: list[Any],
        fps: float | None,
        sampling: Sampling,
        preferred: Replica | None,
        run: _Run,
        answers_before: int | None,
    ) -> Answered:
        """
        Ask until there is a result; None when the run stops first.

        Args:
            answers_before (`int`, *optional*): Of a request that was put off: the answers of the run when it was first sent.

        Raises:
            `_Deferred`: It should be put off.
        """
        started, tries, avoided = time.monotonic(), 0, None
        num_busy, num_answers, is_fresh = 0, run.num_answers, answers_before is None
        for attempt in itertools.count():
            if run.stopped.is_set():
                return None, None
            replica, is_well = self._replicas.take(preferred, avoided), None
            run.count_fresh(is_fresh)
            try:
                completions, usage, drawn = self._send(replica, key, content, fps, sampling, replica.neutral.offered())
                is_well = True
                run.answered()
                return ChatResult(key, prompt, completions, usage=usage, sampling=drawn), replica
            except RequestFailure as failure:
                is_well = None if failure.is_final or failure.is_busy else False
                seen = failure
            finally:
                self._replicas.done(replica, is_well)
                run.count_fresh(-is_fresh)
            is_fresh = not seen.is_busy
            since = max(started, run.last_answer or 0.0)
            is_outage = seen.is_busy or (seen.is_down and since == started and not is_alive(replica.client))
            tries += not is_outage
            is_starved = False
            if seen.is_busy:
                # A long answer to another request may be what this one has to wait for; another that waits too is not.
                may_wait = run.num_fresh > 0
                num_busy = num_busy + (not may_wait) if num_answers == run.num_answers else 0
                num_answers = run.num_answers
                is_starved = answers_before is not None and num_answers > answers_before and num_busy >= BUSY_TRIES
            if seen.is_final or is_starved or (tries >= TRIES and not is_outage):
                if seen.outcome is None:
                    raise InputError(f"{seen}; finished requests are kept, rerun to continue")
                return ChatResult(key, prompt, [], seen.outcome, str(seen)), replica
            is_new = run.last_answer is None and seen.is_unreachable
            # The time of a first try that hung does not count: a second one is due to it.
            now = time.monotonic()
            run.failed_since = run.failed_since or (now if is_outage else None)
            if is_outage and time.monotonic() - (run.failed_since or now) > (FIRST_PATIENCE_S if is_new else PATIENCE_S):
                raise InputError(f"{seen}; finished requests are kept, rerun to continue")
            if seen.is_busy and answers_before is None and attempt + 1 >= TRIES:
                raise _Deferred
            avoided = replica
            self.num_retries += 1
            run.stopped.wait(delay_s(attempt) if seen.retry_after_s is None else seen.retry_after_s)
        raise AssertionError("unreachable")

    def _send(
        self,
        replica: Replica,
        key: str,
        content: list[Any],
        fps: float | None,
        sampling: Sampling,
        neutral: dict[str, float],
    ) -> tuple[list[Completion], Usage | None, dict[str, Any]]:
        """One try, and what `sampling.effective` records of it; raises `RequestFailure` when it gives no completions."""
        import httpx2 as httpx  # what the openai client is built on
        from openai import APIConnectionError, APIStatusError

        asked = request_body(self.model, content, fps, sampling, key, self._options, neutral)
        most = asked.get("max_completion_tokens", asked.get("max_tokens"))
        limit = BYTES_PER_RESPONSE + BYTES_PER_TOKEN * sampling.n * (most if isinstance(most, int) else MOST_TOKENS)
        body = bytearray()
        try:
            with replica.client.chat.completions.with_streaming_response.create(
                model=self.model, messages=[], extra_body=asked
            ) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > limit:
                        size = f"more than {limit} bytes for {sampling.n} completions"
                        raise RequestFailure(f"{replica.url} answered with {size}", BAD_RESPONSE)
        except APIStatusError as error:
            fewer = replica.neutral.without(neutral, error)
            if fewer is not None:
                return self._send(replica, key, content, fps, sampling, fewer)
            raise failure_of_status(error, replica.url) from error
        except (APIConnectionError, httpx.HTTPError) as error:
            raise failure_of_connection(error, replica.url, self._timeout_s) from error
        completions, usage = read_reply(bytes(body), sampling.n, replica.url)
        replica.neutral.settle(neutral)
        return completions, usage, effective(asked)

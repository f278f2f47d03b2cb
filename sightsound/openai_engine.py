"""
Ask OpenAI-compatible servers: several replicas, bounded concurrency, and every way in which a server fails.

What happens to a request, and who is to blame for it:

- 429 means "later": asked again, after `Retry-After` where the server gives one.
- Any other passing failure (500, 502, 503, 504, a reset connection, no answer within `timeout_s`, a body that is not a chat
  completion) is asked again up to `TRIES` times; then it is the request's outcome. Not where no server answers anybody at all:
  an outage is waited for, up to `PATIENCE_S`.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .chat import ChatRequest, ChatResult, Completion, Sampling, Usage
from .cli import InputError
from .media import MediaError
from .openai_protocol import (
    RequestFailure,
    content_of,
    delay_s,
    failure_of_connection,
    failure_of_status,
    parse_completions,
    request_body,
)
from .publishing import shown_source
from .sampling import NeutralFields, effective
from .schema import BAD_RESPONSE


# Long enough for n = 8 long traces from a queue of hundreds at a busy server: what takes longer is a server that hangs.
TIMEOUT_S, CONNECT_TIMEOUT_S = 600.0, 10.0
TRIES = 6  # five waits of 0.5 to 8 s
# How long nobody may be answered before the run stops; less where nobody ever was: the address is probably wrong.
PATIENCE_S, FIRST_PATIENCE_S = 600.0, 15.0
# A replica that failed so often in a row is left alone for a while, then tried with one request, if there are others.
FAILURES_BEFORE_REST = 3

# A completion of `max_tokens` is far shorter: tokens of 16 characters, each escaped as \uXXXX, are 96 bytes.
BYTES_PER_TOKEN, BYTES_PER_RESPONSE = 256, 1 << 20


@dataclass
class _Replica:
    url: str
    client: Any
    neutral: NeutralFields = field(default_factory=NeutralFields)
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0


class _Replicas:
    """The servers of one model: the least loaded is asked, one that keeps failing is left alone for a while."""

    def __init__(self, urls: Sequence[str], timeout_s: float):
        import httpx2 as httpx  # what the openai client is built on
        from openai import OpenAI

        key = os.environ.get("OPENAI_API_KEY", "").strip() or "EMPTY"  # servers of one's own want none
        if not (key.isascii() and key.isprintable()):  # the client would quote it in its error
            raise InputError("OPENAI_API_KEY holds characters that no key has, such as a line break; set it to the key alone")
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        self._all = [_Replica(url, OpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout)) for url in urls]
        self._lock = threading.Lock()

    def take(self, preferred: _Replica | None, avoided: _Replica | None) -> _Replica:
        """Which one to ask, to be given back with `done`: not one that just failed this request, if there is another."""
        with self._lock:
            now = time.monotonic()
            fit = [r for r in self._all if r.failures < FAILURES_BEFORE_REST or (now >= r.rests_until and not r.in_flight)]
            if preferred in fit and preferred is not avoided:
                fit = [preferred]  # it has the clip in its cache
            chosen = min(fit or self._all, key=lambda replica: (replica is avoided, replica.in_flight))
            chosen.in_flight += 1
            return chosen

    def done(self, replica: _Replica, is_well: bool | None) -> None:
        """None: the answer says nothing about the server's health."""
        with self._lock:
            replica.in_flight -= 1
            if is_well:
                replica.failures = 0
            elif is_well is not None:
                replica.failures += 1
                replica.rests_until = time.monotonic() + delay_s(max(0, replica.failures - FAILURES_BEFORE_REST))


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

    def stop(self) -> None:
        """Nothing more is sent; who waits for a slot gets one to see that."""
        self.stopped.set()
        self.slots.release(self.num_workers)

    def next_group(self) -> Sequence[str] | None:
        with self.lock:
            return None if self.stopped.is_set() else next(self.groups, None)


class OpenAIEngine:
    """
    One or more servers of the same model, through the `openai` client.

    Audio travels as `input_audio` (WAV); frames as vLLM's frame list, a `video_url` of base64 images (lossless, so that
    the server sees the pixels that the in-process engine would) with the frame rate in `media_io_kwargs`, which vLLM accepts
    when it is started with `--trust-request-mm-kwargs`. The key comes from `OPENAI_API_KEY`.

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
    """

    # A server takes what it is sent; the ~30 s of Qwen2-Audio's encoder is the window of the models served in practice.
    window_s: float | None = 30.0
    requests_per_call = 1

    def __init__(
        self, model: str, base_urls: str | Sequence[str], concurrency: int, timeout_s: float = TIMEOUT_S, prime: bool = False
    ):
        self.model = model
        self.revision = f"{shown_source(model)} at its server"
        self._concurrency = concurrency
        self._timeout_s, self._prime = timeout_s, prime
        self.num_retries = 0
        self._replicas = _Replicas([base_urls] if isinstance(base_urls, str) else base_urls, timeout_s)
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
                    content = content_of(request)
            except MediaError as error:
                run.results.put(ChatResult(key, "", [], error.outcome, str(error), was_sent=False))
                continue
            prompt, fps = request.text, None if request.video is None else request.video.metadata()["fps"]
            del request  # its frames; what is sent is in `content`
            run.slots.acquire()
            ask = partial(self._answer, key, prompt, content, fps)
            if self._prime and run.sampling.n > 1:
                _, replica = ask(replace(run.sampling, n=1, max_tokens=1), replica, run)
            result, replica = ask(run.sampling, replica, run)
            if result is None:
                run.slots.release()
                return
            run.results.put(result)

    def _answer(
        self,
        key: str,
        prompt: str,
        content: list[Any],
        fps: float | None,
        sampling: Sampling,
        preferred: _Replica | None,
        run: _Run,
    ) -> tuple[ChatResult | None, _Replica | None]:
        """Ask until there is a result; None when the run stops first."""
        started, failed, tries, avoided = time.monotonic(), None, 0, None
        for attempt in itertools.count():
            if run.stopped.is_set():
                return None, None
            replica, is_well = self._replicas.take(preferred, avoided), None
            try:
                completions, usage, drawn = self._send(replica, key, content, fps, sampling, replica.neutral.offered())
                is_well, run.last_answer = True, time.monotonic()
                return ChatResult(key, prompt, completions, usage=usage, sampling=drawn), replica
            except RequestFailure as failure:
                is_well = None if failure.is_final or failure.is_busy else False
                seen = failure
            finally:
                self._replicas.done(replica, is_well)
            since = max(started, run.last_answer or 0.0)
            is_outage = seen.is_busy or (seen.is_down and since == started and not self._is_alive(replica))
            tries += not is_outage
            if seen.is_final or (tries >= TRIES and not is_outage):
                if seen.outcome is None:
                    raise InputError(f"{seen}; finished requests are kept, rerun to continue")
                return ChatResult(key, prompt, [], seen.outcome, str(seen)), replica
            is_new = run.last_answer is None and seen.is_unreachable
            # The time of a first try that hung does not count: a second one is due to it.
            failed = failed or time.monotonic()
            waited_s = time.monotonic() - max(failed, run.last_answer or 0.0)
            if is_outage and waited_s > (FIRST_PATIENCE_S if is_new else PATIENCE_S):
                raise InputError(f"{seen}; finished requests are kept, rerun to continue")
            avoided = replica
            self.num_retries += 1
            run.stopped.wait(delay_s(attempt) if seen.retry_after_s is None else seen.retry_after_s)
        raise AssertionError("unreachable")

    def _is_alive(self, replica: _Replica) -> bool:
        """Whether the server answers anything: then a request that it keeps failing is at fault, and no outage."""
        import httpx2 as httpx
        from openai import APIConnectionError, APIStatusError

        try:
            replica.client.models.list(timeout=CONNECT_TIMEOUT_S)
        except APIStatusError as error:
            return error.status_code < 500
        except (APIConnectionError, httpx.HTTPError, ValueError):
            return False
        return True

    def _send(
        self,
        replica: _Replica,
        key: str,
        content: list[Any],
        fps: float | None,
        sampling: Sampling,
        neutral: dict[str, float],
    ) -> tuple[list[Completion], Usage | None, dict[str, Any]]:
        """One try, and what `sampling.effective` records of it; raises `RequestFailure` when it gives no completions."""
        import httpx2 as httpx  # what the openai client is built on
        from openai import APIConnectionError, APIStatusError

        limit = BYTES_PER_RESPONSE + BYTES_PER_TOKEN * sampling.n * sampling.max_tokens
        asked = request_body(self.model, content, fps, sampling, key, neutral)
        body = bytearray()
        try:
            with replica.client.chat.completions.with_streaming_response.create(
                model=self.model, messages=[], extra_body=asked
            ) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > limit:
                        told = f"more than {limit} bytes for {sampling.n} x {sampling.max_tokens} tokens"
                        raise RequestFailure(f"{replica.url} answered with {told}", BAD_RESPONSE)
        except APIStatusError as error:
            fewer = replica.neutral.without(neutral, error)
            if fewer is not None:
                return self._send(replica, key, content, fps, sampling, fewer)
            raise failure_of_status(error, replica.url) from error
        except (APIConnectionError, httpx.HTTPError) as error:
            raise failure_of_connection(error, replica.url, self._timeout_s) from error
        try:
            completions, usage = parse_completions(bytes(body), sampling.n)
        except ValueError as error:
            raise RequestFailure(f"{replica.url} did not answer with a chat completion: {error}", BAD_RESPONSE) from error
        replica.neutral.settle(neutral)
        return completions, usage, effective(asked)

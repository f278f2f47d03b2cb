"""
Ask through OpenAI's Batch API: half the price, answers within a day, and nothing paid twice.

Requests are written into input files, each file is uploaded and a batch made of it, and the answers are read when the batch
has ended. What becomes of a request:

- Its answer is read as `OpenAIEngine` reads one; 400, 413 and 422 refuse this request and not the next: its outcome at once.
  One that names a sampling field is asked again without such fields. Of these only OpenAI's own are sent, since the API is.
- Another failure, or no line at all, is asked again in a further batch, up to `TRIES` batches; then it is the request's
  outcome, or the end of the run where it would be that to `OpenAIEngine` too (401, 404, or 429 and no answers).
- A batch that expired or was cancelled keeps what it has answered. The rest of an expired one is submitted again; after a
  cancelled one the run stops, and a rerun submits the rest.
- A batch that failed its validation was not begun: the run stops with the server's reason. Where that is the account's limit
  of enqueued tokens, fewer or smaller batches are submitted instead.

A rerun reads the batches of the runs before it, and submits what is in none of them; see `openai_account`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import SERVER_ERROR
from sightsound.engines.base import ChatRequest, ChatResult, Completion, Sampling, Usage
from sightsound.engines.openai import TIMEOUT_S, OpenAIEngine
from sightsound.engines.openai_account import ENDPOINT, BatchAccount
from sightsound.engines.openai_protocol import RequestFailure, content_of, failure_of_reported, request_body
from sightsound.engines.openai_replies import read_reply
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.runner import MAX_UNANSWERED
from sightsound.engines.sampling import NEUTRAL, OPENAI_FIELDS, effective, named_fields


BATCHES_FILE = "batches.jsonl"

# OpenAI's API reference, batches/create, `input_file_id`: "up to 50,000 requests, and can be up to 200 MB in size". Such files
# go by themselves after 30 days (files/create, `expires_after`).
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
# A file holds some hundred clips: enough of them at once that a large corpus does not wait for one day after the other.
MAX_OPEN = 100
TRIES = 3  # each may take a day
LONGEST_CUSTOM_ID = 64  # not documented by OpenAI, but the limit of servers that speak its protocol
RESULTS_PER_YIELD = 500

ENDED = ("completed", "expired", "cancelled", "failed")
# API reference, the batch's error file, `error.code`: these two were not begun; the third, `request_timeout`, was.
NOT_BEGUN = ("batch_expired", "batch_cancelled")
TOO_MUCH_AT_ONCE = "token_limit_exceeded"  # https://github.com/openai/openai-python/issues/2084

Answer = tuple[list[Completion], Usage | None]


@dataclass
class _Open:
    """A batch that is yet to be read. `is_old`: it had ended before this run first looked at it."""

    batch_id: str
    keys: list[str]
    is_old: bool | None = None


@dataclass
class _Run:
    """One call of `stream`: `wanted` are the keys without a result, `todo` those of them that are in no open batch."""

    sampling: Sampling
    build: Callable[[str], ChatRequest]
    asked: str
    wanted: dict[str, None]
    max_requests: int
    options: RequestOptions
    most_open: int = MAX_OPEN
    todo: deque[str] = field(default_factory=deque)
    opened: list[_Open] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    prompts: dict[str, str] = field(default_factory=dict)
    neutral: dict[str, float] = field(default_factory=lambda: {name: NEUTRAL[name] for name in OPENAI_FIELDS})
    num_polls: int = 0
    has_answers: bool = False
    told: str = ""

    def elsewhere(self) -> set[str]:
        return {key for each in self.opened for key in each.keys}

    def put_back(self, keys: Iterable[str]) -> None:
        """To be submitted (again), unless they have a result or another batch may give them one."""
        elsewhere = self.elsewhere()
        self.todo.extend(key for key in keys if key in self.wanted and key not in elsewhere)


class OpenAIBatchEngine(OpenAIEngine):
    """
    One OpenAI-compatible server that has the Batch API; the requests and their results are those of `OpenAIEngine`.

    Args:
        model (`str`): The name under which the server serves the model.
        base_url (`str`): Such as `https://api.openai.com/v1`. The key comes from `OPENAI_API_KEY`.
        record (`Path`): Where to keep what was submitted: `BATCHES_FILE` beside the journal, to be deleted when the stage is
            finished. Input and output files are put beside it meanwhile.
        poll_s (`tuple[float, float]`): First and longest time between two looks at the batches, seconds; each is half as long
            again as the one before.
        settle_s (`float`): How long a batch may take to appear in the account's list, seconds.
        max_requests (`int`): In one input file.
        max_bytes (`int`): In one input file.
        options (`RequestOptions`): What the server wants otherwise.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        record: str | Path,
        timeout_s: float = TIMEOUT_S,
        poll_s: tuple[float, float] = (1.0, 120.0),
        settle_s: float = 10.0,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        options: RequestOptions = RequestOptions(),  # noqa: B008 - frozen
    ):
        super().__init__(model, base_url, concurrency=1, timeout_s=timeout_s, options=options)
        replica = self._replicas.take(None, None)
        self._url = replica.url
        self.keeps_records = True  # of batches, so that a rerun has to send the same requests
        self._account = BatchAccount(replica.client, replica.url, timeout_s, record, settle_s)
        self._poll_s, self._max_requests, self._max_bytes = poll_s, max_requests, max_bytes
        path = Path(record)
        self._input, self._output, self._errors = (
            path.with_name(f".{path.name}.{name}") for name in ("input", "output", "errors")
        )

    def stream(
        self, groups: Iterable[Sequence[str]], build: Callable[[str], ChatRequest], sampling: Sampling
    ) -> Iterator[list[ChatResult]]:
        """
        Submit what no earlier batch has answered or may answer, and read batches as they end; see `StreamingEngine`.

        Args:
            build (`Callable`): Called when a request is written, or its answer found in a batch of an earlier process.

        Raises:
            `InputError`: The server cannot be used, or no longer, or a batch failed or was cancelled.
        """
        asked = hashlib.sha256(json.dumps([self.model, asdict(sampling)]).encode()).hexdigest()
        wanted = dict.fromkeys(key for group in groups for key in group)
        run = _Run(sampling, build, asked, wanted, self._max_requests, self._options)
        try:
            with self._account:
                for batch_id, keys in self._account.recorded(asked):
                    if not run.wanted.keys().isdisjoint(keys):
                        run.opened.append(_Open(batch_id, keys))
                run.put_back(run.wanted)
                while run.todo or run.opened:
                    yield from self._submit(run)
                    yield from self._collect(run)
        finally:
            for path in (self._input, self._output, self._errors):
                path.unlink(missing_ok=True)

    def _submit(self, run: _Run) -> Iterator[list[ChatResult]]:
        while run.todo and len(run.opened) < run.most_open:
            keys, digest, unread = self._write_input(run)
            if unread:
                yield unread
            if keys and (adopted := self._account.adopt(digest, run.asked, keys)):
                run.opened.append(_Open(adopted, keys))
            elif keys:
                self._look_up()
                made = self._account.make(self._input, digest, run.asked, keys)
                run.opened.append(_Open(made, keys, is_old=False))
            run.num_polls = 0

    def _write_input(self, run: _Run) -> tuple[list[str], str, list[ChatResult]]:
        """One input file, row by row: its keys, its digest, and the requests whose clip cannot be read."""
        keys: list[str] = []
        unread: list[ChatResult] = []
        digest, num_bytes = hashlib.sha256(), 0
        with open(self._input, "wb") as file:
            while run.todo and len(keys) < run.max_requests:
                key = run.todo[0]
                try:
                    request = run.build(key)
                except MediaError as error:
                    unread.append(_unread(run.todo.popleft(), error))
                    del run.wanted[key]
                    continue
                fps = None if request.video is None else request.video.metadata()["fps"]
                content = content_of(request, self._options)
                body = request_body(self.model, content, fps, run.sampling, key, self._options, run.neutral)
                line = json.dumps({"custom_id": _custom_id(key), "method": "POST", "url": ENDPOINT, "body": body})
                encoded = line.encode() + b"\n"
                num_bytes += len(encoded)
                if keys and num_bytes > self._max_bytes:
                    break  # it opens the next file
                file.write(encoded)
                digest.update(encoded)
                keys.append(run.todo.popleft())
                run.prompts[key] = request.text
        return keys, digest.hexdigest(), unread

    def _collect(self, run: _Run) -> Iterator[list[ChatResult]]:
        """Look at every open batch once, and read those that have ended; wait where none has."""
        batches = []
        for each in list(run.opened):
            batch = self._account.retrieve(each.batch_id)
            batches.append(batch)
            if each.is_old is None:
                each.is_old = batch.status in ENDED
            if batch.status in ENDED:
                run.opened.remove(each)
                yield from self._read(each, batch, run) if batch.status != "failed" else self._fail(each, batch, run)
        self._tell(batches, run)
        if len(run.opened) == len(batches) > 0:
            shortest, longest = self._poll_s
            time.sleep(min(longest, shortest * 1.5 ** min(run.num_polls, 50)))
            run.num_polls += 1

    def _tell(self, batches: list[Any], run: _Run) -> None:
        """A line above the progress bar, whenever there is something new."""
        from tqdm import tqdm

        counts = [batch.request_counts for batch in batches if batch.request_counts]
        num_done, total = sum(c.completed + c.failed for c in counts), sum(c.total for c in counts)
        statuses = ", ".join(f"{num} {status}" for status, num in Counter(batch.status for batch in batches).items())
        told = f"batches at {self._url}: {statuses}; {num_done} of {total} requests done"
        if batches and told != run.told:
            run.told = told
            tqdm.write(told, file=sys.stderr)

    def _fail(self, each: _Open, batch: Any, run: _Run) -> Iterator[list[ChatResult]]:
        """Nothing of it was begun or will be paid."""
        errors = (batch.errors.data if batch.errors else None) or []
        told = "; ".join(f"line {e.line}: {e.message}" if e.line else str(e.message) for e in errors[:3]) or "it gave no reason"
        told = f"{self._url} did not accept batch {batch.id}: {' '.join(told.split())[:300]}"
        if any(error.code == TOO_MUCH_AT_ONCE for error in errors) and not each.is_old:
            if run.opened:
                run.most_open = len(run.opened)
            elif len(each.keys) > 1:
                run.max_requests = len(each.keys) // 2
            else:
                raise InputError(f"{told}; finished requests are kept, rerun to continue")
        elif not each.is_old:
            raise InputError(f"{told}; does {self.model} take batches? Finished requests are kept, rerun to continue")
        run.put_back(each.keys)
        yield from ()

    def _read(self, each: _Open, batch: Any, run: _Run) -> Iterator[list[ChatResult]]:
        """Answers in the order of the output file, outcomes between them; what has neither is put back."""
        self._account.download(batch.output_file_id, self._output)
        self._account.download(batch.error_file_id, self._errors)
        answered: set[str] = set()
        failures: dict[str, RequestFailure] = {}
        for key, found in self._lines(each, run):
            if isinstance(found, RequestFailure):
                failures[key] = found
            else:
                answered.add(key)
        run.has_answers = run.has_answers or bool(answered)
        settled, stop = self._settle(each, batch, answered, failures, run)
        # Among the answers: so many outcomes in a row would be taken for a server that answers nobody.
        num_pauses = -(-len(settled) // MAX_UNANSWERED)
        size = min(RESULTS_PER_YIELD, -(-len(answered) // (num_pauses + 1)))
        answers = (
            _result(key, run, *found)
            for key, found in self._lines(each, run)
            if not isinstance(found, RequestFailure) and key in run.wanted
        )
        outcomes = (_result(key, run, [], None, failure) for key, failure in settled.items())
        while part := list(itertools.islice(answers, size)):
            yield part
            if between := list(itertools.islice(outcomes, MAX_UNANSWERED)):
                yield between
        yield from iter(lambda: list(itertools.islice(outcomes, MAX_UNANSWERED)), [])
        if stop is not None:
            raise InputError(f"{stop}; finished requests are kept, rerun to continue")

    def _settle(
        self, each: _Open, batch: Any, answered: set[str], failures: dict[str, RequestFailure], run: _Run
    ) -> tuple[dict[str, RequestFailure], RequestFailure | None]:
        """What becomes of the requests without an answer: which have an outcome, and what stops the run. The rest goes back."""
        settled: dict[str, RequestFailure] = {}
        stop: RequestFailure | None = None
        again, elsewhere = [], run.elsewhere()
        for key in (key for key in each.keys if key in run.wanted and key not in answered):
            failure = failures.get(key)
            if failure is None and batch.status == "completed":
                failure = RequestFailure(f"{self._url} told nothing of a request of batch {batch.id}", SERVER_ERROR)
            elif failure is None and not answered:
                failure = RequestFailure(f"batch {batch.id} at {self._url} {batch.status} without an answer")
            # An old batch that has nothing but failures to say is no reason to fail again: the user has seen to it since.
            counts = failure is not None and (bool(answered) or not each.is_old)
            run.tries[key] += counts
            if failure is None or not counts or key in elsewhere or not (failure.is_final or run.tries[key] >= TRIES):
                again.append(key)
            elif failure.outcome is not None and (run.has_answers or not failure.is_busy):
                settled[key] = failure
            else:
                stop = stop or (None if each.is_old else failure)
                again.append(key)
        if batch.status == "cancelled" and again and not each.is_old:
            stop = RequestFailure(f"batch {batch.id} at {self._url} was cancelled")
        self.num_retries += len(again)
        run.put_back(again)
        return settled, stop

    def _lines(self, each: _Open, run: _Run) -> Iterator[tuple[str, Answer | RequestFailure]]:
        """What the files say of wanted requests. Lines about others, and what is no line of the protocol, are passed over."""
        keys = {_custom_id(key): key for key in each.keys if key in run.wanted}
        for path in (self._output, self._errors):
            with open(path, "rb") as file:
                for line in file:
                    try:
                        told = json.loads(line)
                    except (ValueError, RecursionError):
                        continue
                    key = keys.get(str(told.get("custom_id"))) if isinstance(told, dict) else None
                    if key is not None and (found := self._parse(told, run)) is not None:
                        yield key, found

    def _parse(self, told: dict[str, Any], run: _Run) -> Answer | RequestFailure | None:
        """One line; None for a request that was not begun."""
        response, error = told.get("response"), told.get("error")
        if isinstance(response, dict):
            status, body = response.get("status_code"), response.get("body")
        elif isinstance(error, dict) and error.get("code") in NOT_BEGUN:
            return None
        else:
            status, body = 408, {"error": error}
        if status == 200:
            try:
                return read_reply(json.dumps(body).encode(), run.sampling.n, self._url)
            except RequestFailure as failure:
                return failure
        status = status if isinstance(status, int) and 300 <= status < 600 else 500
        refused = failure_of_reported(status, body.get("error", body) if isinstance(body, dict) else None, self._url)
        if refused.__cause__ is not None and named_fields(refused.__cause__, OPENAI_FIELDS):
            run.neutral, refused.is_final = {}, False  # all at once: another one would cost another day
        return refused


def _custom_id(key: str) -> str:
    return key if len(key) <= LONGEST_CUSTOM_ID else hashlib.sha256(key.encode()).hexdigest()


def _unread(key: str, error: MediaError) -> ChatResult:
    return ChatResult(key, "", [], error.outcome, str(error), was_sent=False)


def _result(
    key: str, run: _Run, completions: list[Completion], usage: Usage | None, failure: RequestFailure | None = None
) -> ChatResult:
    del run.wanted[key]
    prompt = run.prompts.pop(key, None)
    if prompt is None:  # written by another process; building it again tells the request's note too
        try:
            prompt = run.build(key).text
        except MediaError as error:
            return _unread(key, error)
    if failure is not None:
        return ChatResult(key, prompt, [], failure.outcome, str(failure))
    sampling = run.sampling
    asked = {"n": sampling.n, "temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "seed": 0, **run.neutral}
    return ChatResult(key, prompt, completions, usage=usage, sampling=effective(run.options.apply(asked)))

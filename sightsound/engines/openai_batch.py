"""
Make requests through OpenAI's Batch API: half the price, answers within a day, and nothing is paid twice.

The requests are written into input files. Each file is uploaded, a batch is made of it, and its answers are read when the batch
has ended. What happens to a request:

- Its answer is read as `OpenAIEngine` reads one. 400, 413 and 422 refuse this request alone: that is its outcome. The exception
  is a refusal that names a sampling field: the request is made again without such fields. Only OpenAI's own fields are sent.
- After any other failure, or when both result files lack the request, it goes into another batch, up to `TRIES` batches. Then
  the failure is its outcome, or stops the run where it would stop `OpenAIEngine` too (401, 404, or 429 and no answers).
- A batch that expired or was cancelled keeps the answers that it has. The rest of an expired batch is submitted again. After a
  cancelled batch the run stops, and a rerun submits the rest.
- A batch that fails its validation is never begun: the run stops with the server's reason. Where the reason is the account's
  limit of enqueued tokens, fewer or smaller batches are submitted instead.

A rerun reads the batches of the runs before it, and submits what is in none of them; see `openai_account`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import SERVER_ERROR
from sightsound.engines.base import ChatRequest, ChatResult, Completion, EngineFlags, Sampling, Usage
from sightsound.engines.openai import TIMEOUT_S, OpenAIEngine
from sightsound.engines.openai_account import ENDPOINT, BatchAccount
from sightsound.engines.openai_protocol import RequestFailure, content_of, failure_of_reported, request_body
from sightsound.engines.openai_replies import read_reply
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.sampling import NEUTRAL, OPENAI_FIELDS, effective, named_fields
from sightsound.stage import Journal


BATCHES_FILE = "batches.jsonl"

# OpenAI's API reference, batches/create, `input_file_id`: "up to 50,000 requests, and can be up to 200 MB in size". OpenAI
# deletes such files after 30 days (files/create, `expires_after`).
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
# A file holds some hundred clips. With many batches at once a large corpus does not wait for one day after the other.
MAX_OPEN = 100
TRIES = 3  # each may take a day
LONGEST_CUSTOM_ID = 64  # not documented by OpenAI, but the limit of servers that speak its protocol

ENDED = ("completed", "expired", "cancelled", "failed")
# API reference, the batch's error file, `error.code`. The third code, `request_timeout`, is of a request that was begun.
NOT_BEGUN = ("batch_expired", "batch_cancelled")
TOO_MUCH_AT_ONCE = "token_limit_exceeded"  # https://github.com/openai/openai-python/issues/2084

Answer = tuple[list[Completion], Usage | None]


@dataclass
class _Batch:
    """A batch that is yet to be read. `is_old`: it had ended before this run first looked at it."""

    id: str
    keys: list[str]
    is_old: bool | None = None


@dataclass
class _Run:
    """One call of `stream`. `wanted` are the keys that have no result yet."""

    sampling: Sampling
    build: Callable[[str], ChatRequest]
    wanted: dict[str, None]
    account: BatchAccount
    max_requests: int
    most_open: int = MAX_OPEN
    open: list[_Batch] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    prompts: dict[str, str] = field(default_factory=dict)
    neutral: dict[str, float] = field(default_factory=lambda: {name: NEUTRAL[name] for name in OPENAI_FIELDS})
    num_polls: int = 0
    has_answers: bool = False
    message: str = ""

    def submitted(self) -> set[str]:
        """Keys that an open batch may still answer."""
        return {key for batch in self.open for key in batch.keys}


class OpenAIBatchEngine(OpenAIEngine):
    """
    One OpenAI-compatible server that has the Batch API. The requests and their results are those of `OpenAIEngine`; the
    answers of one batch are in memory at a time.

    Args:
        model (`str`): The name under which the server serves the model.
        base_url (`str`): Such as `https://api.openai.com/v1`. The key comes from `OPENAI_API_KEY`.
        record (`Path`): Where to keep what was submitted: `BATCHES_FILE` beside the journal, to be deleted when the stage is
            finished. The input file is put beside it meanwhile.
        poll_s (`tuple[float, float]`): First and longest time between two looks at the batches, seconds. Each wait is half as
            long again as the one before.
        settle_s (`float`): How long a batch may take to appear in the account's list, seconds.
        max_requests (`int`), max_bytes (`int`): Of one input file.
        options (`RequestOptions`): Fields that the server needs changed.
    """

    keeps_records = True  # a rerun has to send the same requests

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
        self._url, self._client = replica.url, replica.client
        self._record, self._settle_s, self._poll_s = Path(record), settle_s, poll_s
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._input = self._record.with_name(f".{self._record.name}.input")

    def stream(
        self, groups: Iterable[Sequence[str]], build: Callable[[str], ChatRequest], sampling: Sampling
    ) -> Iterator[list[ChatResult]]:
        """
        Submit what no earlier batch has answered or may answer, and read batches as they end; see `StreamingEngine`.

        Args:
            build (`Callable`): Called when a request is written, or when its answer is found in a batch of an earlier process.

        Raises:
            `InputError`: The server cannot be used, or no longer, or a batch failed or was cancelled.
        """
        asked = hashlib.sha256(json.dumps([self.model, asdict(sampling)]).encode()).hexdigest()
        if not (wanted := dict.fromkeys(key for group in groups for key in group)):
            return
        try:
            with closing(Journal(self._record)) as record:
                account = BatchAccount(
                    self._client, self._url, timeout_s=self._timeout_s, record=record, asked=asked, settle_s=self._settle_s
                )
                run = _Run(sampling, build, wanted, account, self._max_requests)
                run.open = [_Batch(*each) for each in run.account.recorded() if not wanted.keys().isdisjoint(each[1])]
                while run.wanted:
                    yield from self._submit(run)
                    yield from self._collect(run)
        except RequestFailure as failure:
            raise InputError(f"{failure}; finished requests are kept, rerun to continue") from failure
        finally:
            self._input.unlink(missing_ok=True)

    def _submit(self, run: _Run) -> Iterator[list[ChatResult]]:
        submitted = run.submitted()
        todo = deque(key for key in run.wanted if key not in submitted)
        while todo and len(run.open) < run.most_open:
            keys, digest, unread = self._write_input(run, todo)
            if unread:
                yield unread
            if keys and (adopted := run.account.adopt(digest, keys)):
                run.open.append(_Batch(adopted, keys))
            elif keys:
                self._look_up()
                run.open.append(_Batch(run.account.make(self._input, digest, keys), keys, is_old=False))
            run.num_polls = 0

    def _write_input(self, run: _Run, todo: deque[str]) -> tuple[list[str], str, list[ChatResult]]:
        """Write one input file, row by row: its keys, its digest, and the requests whose clip cannot be read."""
        keys: list[str] = []
        unread: list[ChatResult] = []
        digest, num_bytes = hashlib.sha256(), 0
        with open(self._input, "wb") as file:
            while todo and len(keys) < run.max_requests:
                key = todo[0]
                try:
                    request = run.build(key)
                except MediaError as error:
                    unread.append(ChatResult.without_clip(key, error))
                    del run.wanted[todo.popleft()]
                    continue
                body = self._body(key, run, content_of(request, self._options), request.fps)
                line = json.dumps({"custom_id": _custom_id(key), "method": "POST", "url": ENDPOINT, "body": body})
                encoded = line.encode() + b"\n"
                num_bytes += len(encoded)
                if keys and num_bytes > self._max_bytes:
                    break  # it opens the next file
                file.write(encoded)
                digest.update(encoded)
                keys.append(todo.popleft())
                run.prompts[key] = request.text
        return keys, digest.hexdigest(), unread

    def _body(self, key: str, run: _Run, content: list[Any], fps: float | None = None) -> dict[str, Any]:
        return request_body(self.model, content, fps, run.sampling, key, self._options, run.neutral)

    def _collect(self, run: _Run) -> Iterator[list[ChatResult]]:
        """Look at every open batch once, and read those that have ended; wait where none has."""
        from tqdm import tqdm

        looks = []
        for batch in list(run.open):
            looks.append(look := run.account.retrieve(batch.id))
            if batch.is_old is None:
                batch.is_old = look.status in ENDED
            if look.status in ENDED:
                run.open.remove(batch)
                if look.status == "failed":
                    self._react_to_failed(batch, look, run)
                else:
                    yield from self._read(batch, look, run)
        counts = [look.request_counts for look in looks if look.request_counts]
        num_done, total = sum(c.completed + c.failed for c in counts), sum(c.total for c in counts)
        statuses = ", ".join(f"{num} {status}" for status, num in Counter(look.status for look in looks).items())
        message = f"batches at {self._url}: {statuses}; {num_done} of {total} requests done"
        if looks and message != run.message:
            run.message = message
            tqdm.write(message, file=sys.stderr)  # above the progress bar
        if len(run.open) == len(looks) > 0:
            shortest, longest = self._poll_s
            time.sleep(min(longest, shortest * 1.5 ** min(run.num_polls, 50)))
            run.num_polls += 1

    def _react_to_failed(self, batch: _Batch, look: Any, run: _Run) -> None:
        """A failed batch was never begun and is not paid. Of an old one the user may have mended the reason since."""
        errors = (look.errors.data if look.errors else None) or []
        lines = (f"line {e.line}: {e.message}" if e.line else str(e.message) for e in errors[:3])
        reason = " ".join("; ".join(lines).split())[:300] or "it gave no reason"
        message = f"{self._url} did not accept batch {batch.id}: {reason}"
        if batch.is_old:
            return
        if not any(error.code == TOO_MUCH_AT_ONCE for error in errors):
            raise InputError(f"{message}; does {self.model} take batches? Finished requests are kept, rerun to continue")
        if run.open:
            run.most_open = len(run.open)
        elif len(batch.keys) > 1:
            run.max_requests = len(batch.keys) // 2
        else:
            raise RequestFailure("", message)

    def _read(self, batch: _Batch, look: Any, run: _Run) -> Iterator[list[ChatResult]]:
        """Yield the outcomes, then the answers. What has neither stays wanted, and is submitted again."""
        results = dict(self._results(batch, look, run))
        answers = {key: found for key, found in results.items() if not isinstance(found, RequestFailure)}
        unanswered = [key for key in batch.keys if key in run.wanted and key not in answers]
        run.has_answers = run.has_answers or bool(answers)
        submitted, stop = run.submitted(), None
        outcomes: dict[str, RequestFailure] = {}
        for key in unanswered:
            failure = results.get(key)
            if failure is None and look.status == "completed":
                failure = RequestFailure(SERVER_ERROR, f"the results of batch {batch.id} at {self._url} lack a request")
            elif failure is None and not answers:
                failure = RequestFailure("", f"batch {batch.id} at {self._url} {look.status} without an answer")
            # An old batch without any answer is no reason to fail again: the user may have mended the reason since.
            if not isinstance(failure, RequestFailure) or (batch.is_old and not answers):
                continue
            run.tries[key] += 1
            if key in submitted or not (failure.is_final or run.tries[key] >= TRIES):
                continue
            if failure.outcome and (run.has_answers or not failure.is_busy):
                outcomes[key] = failure
            elif not batch.is_old:
                stop = stop or failure
        num_again = len(unanswered) - len(outcomes)
        self.num_retries += num_again
        if look.status == "cancelled" and num_again and not batch.is_old:
            stop = RequestFailure("", f"batch {batch.id} at {self._url} was cancelled")
        # Outcomes first: `run_requests` would take many of them after the last answer for a server that answers nothing.
        for part in (outcomes, answers):
            if part:
                yield [self._result(key, found, run) for key, found in part.items()]
        if stop is not None:
            raise stop

    def _results(self, batch: _Batch, look: Any, run: _Run) -> Iterator[tuple[str, Answer | RequestFailure]]:
        """What the result files say of wanted requests: failures, then answers. Lines of another form are skipped."""
        keys = {_custom_id(key): key for key in batch.keys if key in run.wanted}
        for file_id in (look.error_file_id, look.output_file_id):
            for line in run.account.download(file_id).splitlines():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                key = keys.get(str(entry.get("custom_id"))) if isinstance(entry, dict) else None
                if key is not None and (found := self._parse(entry, run)) is not None:
                    yield key, found

    def _parse(self, entry: dict[str, Any], run: _Run) -> Answer | RequestFailure | None:
        """One line of a result file; None for a request that was not begun."""
        response, error = entry.get("response"), entry.get("error")
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
            run.neutral, refused.is_final = {}, False  # all fields at once: to try them one by one would cost days
        return refused

    def _result(self, key: str, found: Answer | RequestFailure, run: _Run) -> ChatResult:
        del run.wanted[key]
        prompt = run.prompts.pop(key, None)
        if prompt is None:  # written by another process: building it again also sets the request's note
            try:
                prompt = run.build(key).text
            except MediaError as error:
                return ChatResult.without_clip(key, error)
        if isinstance(found, RequestFailure):
            return ChatResult(key, prompt, [], found.outcome, str(found))
        return ChatResult(key, prompt, found[0], usage=found[1], sampling=effective(self._body(key, run, [])))


def _custom_id(key: str) -> str:
    return key if len(key) <= LONGEST_CUSTOM_ID else hashlib.sha256(key.encode()).hexdigest()


def make(flags: EngineFlags) -> OpenAIBatchEngine:
    assert flags.batches is not None
    timeout_s = flags.timeout_s or TIMEOUT_S
    return OpenAIBatchEngine(flags.model, flags.base_urls[0], flags.batches, timeout_s, options=flags.options)

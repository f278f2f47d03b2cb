"""
The batches that an account has at a server, and the record of those that are a stage's own: nothing is paid twice.

A kill at any moment costs nothing. An input file is recorded before a batch is made of it, and the batch afterwards. A rerun
that finds a file without a batch looks for one in the account's list. If there is none, it deletes the file first, so that a
request to make the batch that is still under way must fail. A batch also carries the digest of its input file (model, sampling,
keys, texts, clips), so that a run that has lost its record finds its batches again and no others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.engines.openai import FIRST_PATIENCE_S, PATIENCE_S
from sightsound.engines.openai_protocol import RequestFailure, delay_s, failure_of_connection, failure_of_status
from sightsound.stage import Journal


ENDPOINT = "/v1/chat/completions"
DIGEST_FIELD = "sightsound_input_sha256"  # in a batch's metadata


class BatchAccount:
    """
    The batches that an account has at a server, and the record of those that this stage submitted.

    Failures that pass are retried here for minutes. The client's own retries do not serve: one that repeats `POST /batches`
    pays twice, and they do not cover a page of a proxy that comes with status 200.

    Args:
        client (`openai.OpenAI`): Without retries of its own.
        url (`str`): Of the server, for messages.
        timeout_s (`float`): The client's.
        record (`Journal`): Input file -> the digest of its model and sampling and the keys of its requests;
            `batch of FILE` -> the batch that was made of it, or None.
        asked (`str`): Digest of model and sampling.
        settle_s (`float`): How long a batch may take to appear in the account's list, seconds.

    Raises:
        `InputError`: From all methods that make requests: the server cannot be used, or no longer.
    """

    def __init__(self, client: Any, url: str, *, timeout_s: float, record: Journal, asked: str, settle_s: float):
        self._client, self._url, self._timeout_s = client, url, timeout_s
        self._record, self._asked, self._settle_s = record, asked, settle_s
        self._listed: list[Any] | None = None
        self._has_answered = False

    def recorded(self) -> Iterator[tuple[str, list[str]]]:
        """Batches that were submitted before, also those of which only the input file is recorded, and their requests' keys."""
        for file_id, entry in list(self._record.entries.items()):
            if isinstance(entry, dict) and entry["asked"] == self._asked:
                if f"batch of {file_id}" not in self._record:
                    self._record.append([(f"batch of {file_id}", self._find(file_id))])
                if batch_id := self._record[f"batch of {file_id}"]:
                    yield batch_id, entry["keys"]

    def adopt(self, digest: str, keys: list[str]) -> str | None:
        """Record the oldest batch of the account that was made of the same input and is not recorded yet; None if none was."""
        if self._listed is None:
            self._listed = self._call(self._list)
        known = {value for value in self._record.entries.values() if isinstance(value, str)}
        for batch in reversed(self._listed):  # the list has the newest first
            is_same = (batch.metadata or {}).get(DIGEST_FIELD) == digest
            if is_same and batch.status != "failed" and batch.id not in known:
                file = (batch.input_file_id, {"asked": self._asked, "keys": keys})
                self._record.append([file, (f"batch of {batch.input_file_id}", batch.id)])
                return batch.id
        return None

    def make(self, path: Path, digest: str, keys: list[str]) -> str:
        """Upload an input file and make exactly one batch of it, whatever the server answers or does not answer."""
        started = time.monotonic()
        for attempt in itertools.count():
            file_id = self._call(partial(self._upload, path))
            self._record.append([(file_id, {"asked": self._asked, "keys": keys})])
            failure: RequestFailure | None = None
            try:
                batch_id: str | None = self._try(partial(self._create, file_id, digest))
            except RequestFailure as error:
                # A final failure is an answer: there is no batch. After any other failure there may be one all the same.
                failure, batch_id = error, None if error.is_final else self._find(file_id)
            self._record.append([(f"batch of {file_id}", batch_id)])
            if batch_id is not None:
                return batch_id
            assert failure is not None
            self._wait_after(failure, attempt, started)
        raise AssertionError("unreachable")

    def retrieve(self, batch_id: str) -> Any:
        batch = self._call(lambda: _checked(self._client.batches.retrieve(batch_id), "status"), none_if_missing=True)
        if batch is None:
            raise InputError(
                f"batch {batch_id}, which this run submitted, is not known at {self._url}: use the key and the --base_url of "
                f"that time, or delete {self._record.path} to submit its requests again"
            )
        return batch

    def download(self, file_id: str | None) -> bytes:
        """The lines of a result file; empty where there is no such file, or no longer."""

        def lines() -> bytes:
            content = self._client.files.content(file_id).content
            # Another page, of a proxy, would look like a batch without answers, and all of it would be paid once more.
            if content[:1] not in (b"{", b""):
                raise ValueError(f"no lines of JSON in {file_id}: {content[:81]!r}")
            return content

        return (self._call(lines, none_if_missing=True) or b"") if file_id else b""

    def _upload(self, path: Path) -> str:
        with open(path, "rb") as file:
            return str(_checked(self._client.files.create(file=("requests.jsonl", file), purpose="batch")).id)

    def _create(self, file_id: str, digest: str) -> str:
        batch = self._client.batches.create(
            input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={DIGEST_FIELD: digest}
        )
        return str(_checked(batch).id)

    def _list(self) -> list[Any]:
        return [_checked(batch) for batch in self._client.batches.list(limit=100)]

    def _find(self, file_id: str) -> str | None:
        """The batch that was made of a file. If this returns None, none can be made any more: the file is deleted."""
        for is_last in (False, True):
            for batch in self._call(self._list):
                if batch.input_file_id == file_id:
                    return batch.id
            if not is_last:
                self._call(lambda: self._client.files.delete(file_id), none_if_missing=True)
                time.sleep(self._settle_s)
        return None

    def _try(self, request: Callable[[], Any]) -> Any:
        import httpx2 as httpx  # what the openai client is built on
        from openai import APIConnectionError, APIStatusError

        try:
            answer = request()
        except APIStatusError as error:
            self._has_answered = True
            raise failure_of_status(error, self._url) from error
        except (APIConnectionError, httpx.HTTPError) as error:
            raise failure_of_connection(error, self._url, self._timeout_s) from error
        except (ValueError, TypeError, AttributeError) as error:  # a page instead of JSON, JSON of another kind
            raise RequestFailure("", f"{self._url} did not answer as the Batch API does: {error}") from error
        self._has_answered = True
        return answer

    def _call(self, request: Callable[[], Any], none_if_missing: bool = False) -> Any:
        """Make a request until it is answered; with `none_if_missing` a 404 is the answer None."""
        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return self._try(request)
            except RequestFailure as failure:
                if none_if_missing and getattr(failure.__cause__, "status_code", None) == 404:
                    return None
                self._wait_after(failure, attempt, started)
        raise AssertionError("unreachable")

    def _wait_after(self, failure: RequestFailure, attempt: int, started: float) -> None:
        patience_s = PATIENCE_S if self._has_answered else FIRST_PATIENCE_S
        if failure.is_final or time.monotonic() - started > patience_s:
            raise InputError(f"{failure}; finished requests are kept, rerun to continue") from failure
        time.sleep(delay_s(attempt) if failure.retry_after_s is None else failure.retry_after_s)


def _checked(answer: Any, name: str = "id") -> Any:
    """The client makes an object of whatever JSON comes: refuse one without the field that is needed."""
    if not isinstance(getattr(answer, name, None), str):
        raise ValueError(f"no {name} in {str(answer)[:80]}")
    return answer

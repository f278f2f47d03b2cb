"""
The batches that an account has at a server, and the record of those that are a stage's own: nothing is paid twice.

A kill at any moment costs nothing. An input file is recorded before a batch is made of it, and the batch afterwards. A rerun
that finds a file without a batch looks for one in the account's list. If there is none, it deletes the file first, so that a
request to make the batch that is still under way must fail. A batch also carries the digest of its input file (model, sampling,
keys, texts, clips), so that a run that has lost its record finds its batches again and no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.engines.openai_protocol import RequestFailure, delay_s, failure_of_connection, failure_of_status
from sightsound.stage import Journal


ENDPOINT = "/v1/chat/completions"
DIGEST_FIELD = "sightsound_input_sha256"  # in a batch's metadata

# Retries of the openai client, 8 s apart at most: about ten minutes. Before the first answer the address is probably wrong.
RETRIES, FIRST_RETRIES = 80, 4
# Seconds without a byte after which such a request is repeated: none of them waits for a model.
MAX_TIMEOUT_S = 120.0
# The request that creates a batch is not retried by the client: if a reply was lost, a retry would create (and bill) a second
# batch. This many attempts take up to about ten minutes.
CREATE_TRIES = 20


class BatchAccount:
    """
    The batches that an account has at a server, and the record of those that this stage submitted.

    The client's own retries serve here, but for the one request that costs money.

    Args:
        client (`openai.OpenAI`): Of the server.
        url (`str`): Of the server, for messages.
        timeout_s (`float`): The client's.
        record (`Journal`): Input file -> the digest of its model and sampling and the keys of its requests;
            `batch of FILE` -> the batch that was made of it, or None.
        asked (`str`): Digest of model and sampling.
        settle_s (`float`): How long a batch may take to appear in the account's list, seconds.

    Raises:
        `RequestFailure`: From all methods that make requests: the server cannot be used, or no longer.
    """

    def __init__(self, client: Any, url: str, *, timeout_s: float, record: Journal, asked: str, settle_s: float):
        self._url, self._timeout_s = url, min(timeout_s, MAX_TIMEOUT_S)
        self._record, self._asked, self._settle_s = record, asked, settle_s
        self._client = client.with_options(max_retries=FIRST_RETRIES, timeout=self._timeout_s)
        self._batches = self._list()
        self._client = self._client.with_options(max_retries=RETRIES)

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
        known = {value for value in self._record.entries.values() if isinstance(value, str)}
        for batch in reversed(self._batches):  # the list has the newest first
            is_same = (batch.metadata or {}).get(DIGEST_FIELD) == digest
            if is_same and batch.status != "failed" and batch.id not in known:
                file = (batch.input_file_id, {"asked": self._asked, "keys": keys})
                self._record.append([file, (f"batch of {batch.input_file_id}", batch.id)])
                return str(batch.id)
        return None

    def make(self, path: Path, digest: str, keys: list[str]) -> str:
        """Upload an input file and make exactly one batch of it, whatever the server answers or does not answer."""
        create = self._client.with_options(max_retries=0).batches.create
        for attempt in range(CREATE_TRIES):
            with open(path, "rb") as file, self._failures():
                file_id = _checked(self._client.files.create(file=("requests.jsonl", file), purpose="batch")).id
            self._record.append([(file_id, {"asked": self._asked, "keys": keys})])
            metadata, failure = {DIGEST_FIELD: digest}, None
            try:
                with self._failures():
                    made = create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata=metadata)
                    batch_id: str | None = _checked(made).id
            except RequestFailure as error:
                # A final failure is an answer: there is no batch. After any other failure there may be one all the same.
                failure, batch_id = error, None if error.is_final else self._find(file_id)
            self._record.append([(f"batch of {file_id}", batch_id)])
            if failure is None or batch_id is not None:
                return str(batch_id)
            if failure.is_final or attempt + 1 == CREATE_TRIES:
                raise failure
            time.sleep(delay_s(attempt) if failure.retry_after_s is None else failure.retry_after_s)
        raise AssertionError("unreachable")

    def retrieve(self, batch_id: str) -> Any:
        from openai import NotFoundError

        with self._failures():
            try:
                return _checked(self._client.batches.retrieve(batch_id), "status")
            except NotFoundError as error:
                raise InputError(
                    f"batch {batch_id}, which this run submitted, is not known at {self._url}: use the key and the --base_url "
                    f"of that time, or delete {self._record.path} to submit its requests again"
                ) from error

    def download(self, file_id: str | None) -> bytes:
        """The lines of a result file; empty where there is no such file, or no longer."""
        from openai import NotFoundError

        content = b""
        with self._failures(), suppress(NotFoundError):
            content = self._client.files.content(file_id).content if file_id else b""
            # Another page, of a proxy, would look like a batch without answers, and all of it would be paid once more.
            if content[:1] not in (b"{", b""):
                raise ValueError(f"no lines of JSON in {file_id}: {content[:81]!r}")
        return content

    def _list(self) -> list[Any]:
        with self._failures():
            return [_checked(batch) for batch in self._client.batches.list(limit=100)]

    def _find(self, file_id: str) -> str | None:
        """The batch that was made of a file. If this returns None, none can be made any more: the file is deleted."""
        from openai import NotFoundError

        for is_last in (False, True):
            for batch in self._list():
                if batch.input_file_id == file_id:
                    return str(batch.id)
            if not is_last:
                with self._failures(), suppress(NotFoundError):
                    self._client.files.delete(file_id)
                time.sleep(self._settle_s)
        return None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise what the client raises as a `RequestFailure`."""
        import httpx2 as httpx  # what the openai client is built on
        from openai import APIConnectionError, APIStatusError

        try:
            yield
        except APIStatusError as error:
            raise failure_of_status(error, self._url) from error
        except (APIConnectionError, httpx.HTTPError) as error:
            raise failure_of_connection(error, self._url, self._timeout_s) from error
        except (ValueError, TypeError, AttributeError) as error:  # a page instead of JSON, JSON of another kind
            raise RequestFailure("", f"{self._url} did not answer as the Batch API does: {error}") from error


def _checked(answer: Any, name: str = "id") -> Any:
    """The client makes an object of whatever JSON comes: refuse one without the field that is needed."""
    if not isinstance(getattr(answer, name, None), str):
        raise ValueError(f"no {name} in {str(answer)[:80]}")
    return answer

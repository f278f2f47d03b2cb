"""
The side of the Batch API that is paid for: input files, the batches made of them, and a record of both.

A kill at any moment costs nothing. The record has an input file before a batch is made of it, and the batch afterwards. A file
without a batch is looked for in the account's list; where it has none, the file is deleted before anything else happens, so
that a request to make the batch that is still under way must fail. A batch also carries the digest of its input file, by
which a run that has lost its record finds it again; it is the digest of everything that is asked (model, sampling, keys, texts,
clips), so nothing else can be taken for it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sightsound.cli import InputError
from sightsound.engines.openai import FIRST_PATIENCE_S, PATIENCE_S
from sightsound.engines.openai_protocol import RequestFailure, delay_s, failure_of_connection, failure_of_status
from sightsound.stage import Journal


T = TypeVar("T")

ENDPOINT = "/v1/chat/completions"
MARK = "sightsound_input_sha256"  # in a batch's metadata


class BatchAccount:
    """
    What an account has at a server, and which of it is this stage's. Use as a context manager: the record is open meanwhile.

    Args:
        client (`openai.OpenAI`): Without retries of its own.
        url (`str`): Of the server, for messages.
        timeout_s (`float`): The client's.
        record (`Path`): What was submitted: per input file its requests, and the batch that was made of it.
        settle_s (`float`): How long a batch may take to appear in the account's list, seconds.

    Raises:
        `InputError`: From all that asks the server: it cannot be used, or no longer.
    """

    def __init__(self, client: Any, url: str, timeout_s: float, record: str | Path, settle_s: float):
        self._client, self._url, self._timeout_s = client, url, timeout_s
        self._path, self._settle_s = Path(record), settle_s
        self._adoptable: dict[str, list[tuple[str, str]]] | None = None
        self._is_known = False

    def __enter__(self) -> BatchAccount:
        self._record = Journal(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        self._record.close()

    def recorded(self, asked: str) -> Iterator[tuple[str, list[str]]]:
        """Batches submitted so far, also those of which only the input file is recorded, and their requests' keys."""
        for file_id, entry in list(self._record.entries.items()):
            if isinstance(entry, dict) and entry["asked"] == asked:
                if _made(file_id) not in self._record:
                    self._record.append([(_made(file_id), self._find(file_id))])
                if batch_id := self._record[_made(file_id)]:
                    yield batch_id, entry["keys"]

    def adopt(self, digest: str, asked: str, keys: list[str]) -> str | None:
        """The oldest batch of the account that was made of the same input file and is not recorded; now it is."""
        if self._adoptable is None:
            known = {each for each in self._record.entries.values() if isinstance(each, str)}
            self._adoptable = {}
            for batch in self._call(self._list):
                mark = (batch.metadata or {}).get(MARK)
                if mark and batch.status != "failed" and batch.id not in known:
                    self._adoptable.setdefault(mark, []).append((batch.id, batch.input_file_id))  # newest first
        if not (found := self._adoptable.get(digest)):
            return None
        batch_id, file_id = found.pop()
        self._record.append([(file_id, {"asked": asked, "keys": keys}), (_made(file_id), batch_id)])
        return batch_id

    def make(self, path: Path, digest: str, asked: str, keys: list[str]) -> str:
        """Upload an input file and make a batch of it: exactly one, whatever the server answers or does not."""
        started = time.monotonic()
        for attempt in itertools.count():
            file_id = self._call(partial(self._upload, path))
            self._record.append([(file_id, {"asked": asked, "keys": keys})])
            try:
                made: str | None = self._try(partial(self._create, file_id, digest))
            except RequestFailure as failure:
                # A failure that is final is an answer: there is no batch. Any other may have been made all the same.
                made = None if failure.is_final else self._find(file_id)
                if made is None:
                    self._record.append([(_made(file_id), None)])
                    self._wait_after(failure, attempt, started)
            if made is not None:
                self._record.append([(_made(file_id), made)])
                return made
        raise AssertionError("unreachable")

    def retrieve(self, batch_id: str) -> Any:
        batch = self._call(partial(_unless_missing, partial(self._retrieve, batch_id)))
        if batch is None:
            raise InputError(
                f"batch {batch_id}, which this run submitted, is not known at {self._url}: use the key and the --base_url of "
                f"that time, or delete {self._path} to submit its requests again"
            )
        return batch

    def download(self, file_id: str | None, path: Path) -> None:
        """Empty where there is no such file (any more)."""

        def download() -> None:
            with open(path, "wb") as file, self._client.files.with_streaming_response.content(file_id) as response:
                for part in response.iter_bytes():
                    file.write(part)
            with open(path, "rb") as file:
                # What a proxy says instead would read as a batch without answers, and all would be paid once more.
                if (start := file.read(1)) not in (b"{", b""):
                    raise ValueError(f"no lines of JSON in {file_id}: {(start + file.read(80))!r}")

        path.write_bytes(b"")
        if file_id:
            self._call(partial(_unless_missing, download))

    def _upload(self, path: Path) -> str:
        with open(path, "rb") as file:
            return _checked(self._client.files.create(file=("requests.jsonl", file), purpose="batch")).id

    def _create(self, file_id: str, digest: str) -> str:
        made = self._client.batches.create(
            input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={MARK: digest}
        )
        return _checked(made).id

    def _retrieve(self, batch_id: str) -> Any:
        return _checked(self._client.batches.retrieve(batch_id), "status")

    def _list(self) -> list[Any]:
        return [_checked(batch) for batch in self._client.batches.list(limit=100)]

    def _find(self, file_id: str) -> str | None:
        """The batch that was made of the file. Afterwards there is one, or there can be none: the file is gone."""
        for is_last in (False, True):
            for batch in self._call(self._list):
                if batch.input_file_id == file_id:
                    return batch.id
            if not is_last:
                self._call(partial(_unless_missing, partial(self._client.files.delete, file_id)))
                time.sleep(self._settle_s)
        return None

    def _try(self, ask: Callable[[], T]) -> T:
        import httpx2 as httpx  # what the openai client is built on
        from openai import APIConnectionError, APIStatusError

        try:
            answer = ask()
        except APIStatusError as error:
            self._is_known = True
            raise failure_of_status(error, self._url) from error
        except (APIConnectionError, httpx.HTTPError) as error:
            raise failure_of_connection(error, self._url, self._timeout_s) from error
        except (ValueError, TypeError, AttributeError) as error:  # a page instead of JSON, JSON of another kind
            raise RequestFailure(f"{self._url} did not answer as the Batch API does: {error}") from error
        self._is_known = True
        return answer

    def _call(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer."""
        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return self._try(ask)
            except RequestFailure as failure:
                self._wait_after(failure, attempt, started)
        raise AssertionError("unreachable")

    def _wait_after(self, failure: RequestFailure, attempt: int, started: float) -> None:
        patience_s = PATIENCE_S if self._is_known else FIRST_PATIENCE_S
        if failure.is_final or time.monotonic() - started > patience_s:
            raise InputError(f"{failure}; finished requests are kept, rerun to continue") from failure
        time.sleep(delay_s(attempt) if failure.retry_after_s is None else failure.retry_after_s)


def _made(file_id: str) -> str:
    """The record's key for the batch that was made of a file."""
    return f"batch of {file_id}"


def _checked(answer: Any, name: str = "id") -> Any:
    """The client makes an object of whatever comes."""
    if not isinstance(getattr(answer, name, None), str):
        raise ValueError(f"no {name} in {str(answer)[:80]}")
    return answer


def _unless_missing(ask: Callable[[], T]) -> T | None:
    from openai import NotFoundError

    try:
        return ask()
    except NotFoundError:
        return None

"""What a user sees while requests are made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from sightsound.engines.base import ChatResult


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

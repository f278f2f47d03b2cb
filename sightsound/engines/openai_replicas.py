"""The servers of one model, and which of them a request goes to."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sightsound.engines.openai_models import NotAnswered, look_up, make_client
from sightsound.engines.openai_protocol import delay_s
from sightsound.engines.sampling import NeutralFields


# A replica that failed so often in a row is left alone for a while, then tried with one request, if there are others.
FAILURES_BEFORE_REST = 3


@dataclass
class Replica:
    url: str
    client: Any
    neutral: NeutralFields = field(default_factory=NeutralFields)
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0


class Replicas:
    """The servers of one model: the least loaded is asked, one that keeps failing is left alone for a while."""

    def __init__(self, urls: Sequence[str], timeout_s: float):
        self._all = [Replica(url, make_client(url, timeout_s)) for url in urls]
        self._lock = threading.Lock()

    def look_up(self, model: str) -> None:
        """
        Find the model at each server that lists its models, and say on stderr when it ends.

        Raises:
            `InputError`: A server does not serve it.
        """
        for replica in self._all:
            with suppress(NotAnswered):
                if warning := look_up(model, replica.client, replica.url):
                    print(f"warning: {warning}", file=sys.stderr)

    def take(self, preferred: Replica | None, avoided: Replica | None) -> Replica:
        """Which one to ask, to be given back with `done`: not one that just failed this request, if there is another."""
        with self._lock:
            now = time.monotonic()
            fit = [r for r in self._all if r.failures < FAILURES_BEFORE_REST or (now >= r.rests_until and not r.in_flight)]
            if preferred in fit and preferred is not avoided:
                fit = [preferred]  # it has the clip in its cache
            chosen = min(fit or self._all, key=lambda replica: (replica is avoided, replica.in_flight))
            chosen.in_flight += 1
            return chosen

    def done(self, replica: Replica, is_well: bool | None) -> None:
        """Give a server back; `is_well` is None where the answer does not show whether the server works."""
        with self._lock:
            replica.in_flight -= 1
            if is_well:
                replica.failures = 0
            elif is_well is not None:
                replica.failures += 1
                replica.rests_until = time.monotonic() + delay_s(max(0, replica.failures - FAILURES_BEFORE_REST))

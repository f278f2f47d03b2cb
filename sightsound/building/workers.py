"""A pool of worker processes that end with the main process and leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Any


def leave_with_parent() -> None:
    """
    Initializer for the workers of a process pool: they end when the main process ends, also when it is killed.

    Otherwise they would go on writing beside a rerun.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Pool(ProcessPoolExecutor):
    """Its processes ignore Ctrl-C, which a terminal sends to all. The main process ends them."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        # Processes start here and inherit blocked signals. A handler of their own would come too late, after their imports.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def worker_pool(num_proc: int, initializer: Callable[[], None]) -> ProcessPoolExecutor:
    """
    A pool of spawned processes. A forked one could wait for ever for a lock that a thread of pyarrow held.

    Args:
        num_proc (`int`): How many.
        initializer (`Callable`): Runs first in each: `leave_with_parent`, or a function that calls it.
    """
    resource_tracker.ensure_running()  # its start unblocks SIGINT, so it must not happen within `submit`
    return _Pool(num_proc, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)

"""Worker processes of a build: they end with the main process, and Ctrl-C is left to it."""

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
    Initializer for the workers of a process pool: end when the main process does, also when it was killed.

    Orphans would go on writing while a rerun does.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Pool(ProcessPoolExecutor):
    """Its processes ignore Ctrl-C, which a terminal sends to all of them: the main process ends them."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        # Processes are started here and keep the signals that are blocked: a handler of their own would come after imports.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def worker_pool(num_proc: int, initializer: Callable[[], None]) -> ProcessPoolExecutor:
    """
    Processes that start anew: a forked copy of one in which pyarrow's threads run may wait for a lock of theirs for ever.

    Args:
        num_proc (`int`): How many.
        initializer (`Callable`): Runs first in each; `leave_with_parent`, or what calls it.
    """
    resource_tracker.ensure_running()  # its start unblocks SIGINT, and must not come within `submit`
    return _Pool(num_proc, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)

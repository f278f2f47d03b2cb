"""
Cut many videos in worker processes.

A video can crash the process that decodes it, which breaks the whole pool. So the videos in work are then cut again, one at a
time: one that crashes its process twice more is the cause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from sightsound.building.segments import CutSettings, Video, cut_video, write_without_segments
from sightsound.building.sounds import start_worker
from sightsound.building.workers import worker_pool
from sightsound.data import schema


VIDEOS_IN_WORK = 2  # per process, so that none waits; each is a file on the disk where the source is an archive

Task = tuple[Video, Path]  # and its part


class VideoCutter:
    """
    Worker processes that cut videos. Use as a context manager.

    Args:
        settings (`CutSettings`): How.
        num_proc (`int`): How many videos are cut at once.
    """

    def __init__(self, settings: CutSettings, num_proc: int):
        self._settings, self._num_proc = settings, num_proc
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> VideoCutter:
        return self

    def __exit__(self, *_: object) -> None:
        self._shut_down()

    def cut(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Cut each video and write its part. Yields a task when its part is written, in order; some are worked on ahead."""
        in_work: deque[tuple[Task, Future[None]]] = deque()
        for task in tasks:
            in_work.append((task, self._submit(task, in_work)))
            if len(in_work) >= VIDEOS_IN_WORK * self._num_proc:
                yield self._first(in_work)
        while in_work:
            yield self._first(in_work)

    def _submit(self, task: Task, in_work: deque[tuple[Task, Future[None]]]) -> Future[None]:
        if self._pool is None:
            self._pool = worker_pool(self._num_proc, start_worker)
        video, part = task
        try:
            return self._pool.submit(cut_video, video, self._settings, part)
        except BrokenProcessPool:
            self._cut_again(in_work)
            return self._submit(task, in_work)

    def _first(self, in_work: deque[tuple[Task, Future[None]]]) -> Task:
        task, done = in_work[0]
        try:
            done.result()
        except BrokenProcessPool:
            self._cut_again(in_work)
        in_work.popleft()
        return task

    def _cut_again(self, in_work: Iterable[tuple[Task, Future[None]]]) -> None:
        """After a crash: cut the videos in work one at a time; the next ones get a new pool."""
        self._shut_down()
        for (video, part), _ in in_work:
            # Twice: the system may have killed the process for the memory that others use.
            if not any(part.is_file() or self._cut_alone(video, part) for _ in range(2)):
                message = "the process that decoded it crashed"
                write_without_segments(video, part, schema.DECODER_CRASHED, message)

    def _cut_alone(self, video: Video, part: Path) -> bool:
        with worker_pool(1, start_worker) as pool:
            try:
                pool.submit(cut_video, video, self._settings, part).result()
            except BrokenProcessPool:
                return False
        return True

    def _shut_down(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

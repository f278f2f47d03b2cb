"""
Decode the audio of many clips in worker processes.

A clip can have several files; the first usable one is taken. A file can crash the process that decodes it, through a bug of a
decoder or the system's out-of-memory killer. That breaks the whole pool of workers. So the clips in work are decoded again, one
at a time: a file that crashes its process twice more is the cause.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from sightsound.building.workers import leave_with_parent, worker_pool
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.audio import encode_flac, is_silent, load_clip
from sightsound.data.clips import Clip, MediaError, open_media, sha256_of


# A clip with less audio than this, after cutting, is `too_short`; so a whole video has to reach this far beyond the question's
# start. 0.2 s are five audio tokens of the student and about one bark or syllable; less is a bad cut.
MIN_DURATION_S = 0.2
# Their headers state no duration, and ffmpeg's guess from the first bit rate can be seconds off.
LENGTH_IS_GUESSED = ("aac", "mp3")
CLIPS_IN_WORK = 4  # per process: enough that none waits, and few to decode again after a crash

# Outcome and detail of a file that cannot be used.
Failure = tuple[str, str]


@dataclass(frozen=True)
class Sound:
    """
    The decoded audio of a clip, or the reasons why there is none.

    Args:
        failures (`tuple`): Of the files that were tried before the used one, or of all.
        clip (`Clip`, *optional*): The file that was used; None if no file could be.
        flac (`bytes`): The audio.
        duration_s (`float`): Its duration.
    """

    failures: tuple[Failure, ...] = ()
    clip: Clip | None = None
    flac: bytes = b""
    duration_s: float = 0.0


@functools.lru_cache(maxsize=4096)
def _ends_s(path: str) -> float | None:
    """The end of a file by its own header; None if it states none. Errors of a file are left to `load_clip`."""
    import av

    try:
        with open_media(path) as container:
            if container.duration is None or container.format.name in LENGTH_IS_GUESSED:
                return None
            return container.duration / av.time_base
    except MediaError:
        return None


def _decode(clip: Clip) -> Sound:
    """
    Decode one file.

    Raises:
        `MediaError`: It cannot be used.
    """
    import av

    if clip.start_s > 0:
        ends_s = _ends_s(clip.path)
        if ends_s is not None and ends_s < clip.start_s + MIN_DURATION_S:
            message = f"the video ends at {ends_s:.2f} s, the question's part begins at {clip.start_s:g} s"
            raise MediaError(schema.TOO_SHORT, message)
    try:
        waveform = load_clip(clip.path, start_s=clip.start_s, max_duration_s=clip.max_duration_s)
    except (av.FFmpegError, ValueError, MemoryError) as error:  # of PyAV and numpy, for malformed streams
        raise MediaError(schema.CORRUPT_MEDIA, f"cannot be decoded: {error or type(error).__name__}") from error
    duration_s = len(waveform) / schema.SAMPLING_RATE
    if duration_s < MIN_DURATION_S:
        raise MediaError(schema.TOO_SHORT, f"{duration_s:.3f} s of audio, expected at least {MIN_DURATION_S:g} s")
    if is_silent(waveform):
        raise MediaError(schema.SILENT, "the audio stream is silent")
    return Sound((), clip, encode_flac(waveform), duration_s)


def decode_first(clips: Sequence[Clip], root: str, crashing: frozenset[Clip] = frozenset()) -> Sound:
    """
    Decode the first usable file of a clip.

    Args:
        clips (`Sequence[Clip]`): The files, in the order in which to try them.
        root (`str`): The media folder, for messages.
        crashing (`frozenset`): Files that crashed their process before; they are not tried.
    """
    failures: list[Failure] = []
    for clip in clips:
        try:
            if clip in crashing:
                raise MediaError(schema.DECODER_CRASHED, "the process that decoded it crashed")
            sound = _decode(clip)
        except MediaError as error:
            failures.append((error.outcome, f"{os.path.relpath(clip.path, root)}: {error}"))
        else:
            return replace(sound, failures=tuple(failures))
    return Sound(tuple(failures))


def start_worker() -> None:
    """Initializer of the pool: each process has one thread and ends with the main process."""
    import torch

    torch.set_num_threads(1)
    leave_with_parent()


@dataclass
class _Task:
    clips: Sequence[Clip]
    result: Future[Sound] | Sound


class SoundReader:
    """
    Worker processes that decode clips. Use as a context manager.

    Args:
        root (`str`): The media folder, for messages.
        num_proc (`int`): How many clips are decoded at once.
    """

    def __init__(self, root: str, num_proc: int):
        self._root, self._num_proc = root, num_proc
        self._pool: ProcessPoolExecutor | None = None
        self._threads = ThreadPoolExecutor(num_proc)
        self._digests: dict[str, Future[str]] = {}
        self._crashing: frozenset[Clip] = frozenset()

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def sounds(self, clips: Iterable[Sequence[Clip]]) -> Iterator[Sound]:
        """The audio of each clip, given as its files, in order. A few clips are decoded ahead."""
        tasks: deque[_Task] = deque()
        for files in clips:
            self._submit(files, tasks)
            if len(tasks) >= CLIPS_IN_WORK * self._num_proc:
                yield self._first(tasks)
        while tasks:
            yield self._first(tasks)

    def sha256_of(self, path: str) -> str:
        """
        Digest of a file. It is read once, however many questions share it.

        Raises:
            `OSError`: It cannot be read.
        """
        if path not in self._digests:
            self._digests[path] = self._threads.submit(sha256_of, path)
        return self._digests[path].result()

    def _submit(self, files: Sequence[Clip], tasks: deque[_Task]) -> None:
        if not files:
            tasks.append(_Task(files, Sound()))
            return
        if files[0].path not in self._digests:
            self._digests[files[0].path] = self._threads.submit(sha256_of, files[0].path)
        if self._pool is None:
            self._pool = worker_pool(self._num_proc, start_worker)
        try:
            tasks.append(_Task(files, self._pool.submit(decode_first, files, self._root, self._crashing)))
        except BrokenProcessPool:
            self._decode_again(tasks)
            self._submit(files, tasks)

    def _first(self, tasks: deque[_Task]) -> Sound:
        try:
            return _result(tasks[0])
        except BrokenProcessPool:
            self._decode_again(tasks)
            return _result(tasks[0])
        finally:
            tasks.popleft()

    def _decode_again(self, tasks: Iterable[_Task]) -> None:
        """After a crash: decode the clips in work one file at a time; the next clips get a new pool."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None
        with _LoneWorker() as worker:
            for task in tasks:
                try:
                    _result(task)
                except BrokenProcessPool:
                    task.result = self._alone(task.clips, worker)

    def _alone(self, clips: Sequence[Clip], worker: _LoneWorker) -> Sound:
        failures: tuple[Failure, ...] = ()
        for clip in clips:
            # Twice: the system may have killed the process for the memory that others use.
            sound = worker.decode(clip, self._root, self._crashing) or worker.decode(clip, self._root, self._crashing)
            if sound is None:
                self._crashing |= {clip}
                sound = decode_first([clip], self._root, self._crashing)
            failures += sound.failures
            if sound.clip is not None:
                return replace(sound, failures=failures)
        return Sound(failures)


def _result(task: _Task) -> Sound:
    return task.result if isinstance(task.result, Sound) else task.result.result()


class _LoneWorker:
    """One process that decodes one file at a time. It is replaced after a crash."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _LoneWorker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def decode(self, clip: Clip, root: str, crashing: frozenset[Clip]) -> Sound | None:
        """The audio of a file; None if the process crashed."""
        if self._pool is None:
            self._pool = worker_pool(1, start_worker)
            try:
                self._pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise InputError(
                    "worker processes end before they decode anything, so no clip is the cause; give a smaller "
                    "--num_proc, or more memory"
                ) from error
        try:
            return self._pool.submit(decode_first, [clip], root, crashing).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = None
            return None

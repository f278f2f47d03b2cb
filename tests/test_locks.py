"""One writer per folder, with flock and where the file system refuses it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from sightsound import locks
from sightsound.cli import InputError
from sightsound.stage import Stage
from tests.support.tiny import REPO


REFUSALS = ("ENOLCK", "ENOSYS", "EOPNOTSUPP")
WRITER = """
import sys, time
from sightsound import locks
from sightsound.cli import run
from sightsound.stage import Stage
def main():
    locks.RENEW_EVERY_S = 0.1
    with Stage(sys.argv[1], {"seed": 0}) as stage:
        print("writing", flush=True)
        time.sleep(float(sys.argv[2]))
run(main)
"""


@pytest.fixture
def writer(tmp_path):
    (tmp_path / "writer.py").write_text(WRITER)

    @contextmanager
    def start(refusal: str, folder: Path, seconds: float = 60.0):
        command = [sys.executable, "-m", "tests.support.without_flock", refusal, tmp_path / "writer.py", folder, str(seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=REPO, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


@pytest.fixture
def no_flock(monkeypatch):
    """In this process; the kernel's own refusal cannot be taken back."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_stage_works_on_without_flock_and_warns_in_one_line(refusal, writer, tmp_path):
    with writer(refusal, tmp_path / "out", seconds=0) as process:
        said, warned = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "writing\n"), warned
    assert warned.count("\n") == 1 and warned.startswith(f"warning: {tmp_path / 'out'}: flock does not work there"), warned
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "stage.json"]


def test_without_flock_a_second_writer_is_refused_and_one_after_a_kill_is_not(writer, tmp_path):
    with writer("ENOSYS", tmp_path / "out") as first:
        assert first.stdout.readline() == "writing\n"
        assert locks._is_renewed(tmp_path / "out" / locks.OWNER_FILE)
        with writer("ENOSYS", tmp_path / "out", seconds=0) as second:
            _, message = second.communicate(timeout=60)
        assert second.returncode == 2
        assert f"error: {tmp_path / 'out'} is being written by process {first.pid} on " in message
        first.kill()
        first.wait()
        with writer("ENOSYS", tmp_path / "out", seconds=0) as third:
            third.communicate(timeout=60)
        assert third.returncode == 0


def test_a_suspended_writer_whose_folder_was_taken_over_ends(writer, tmp_path):
    with writer("ENOLCK", tmp_path / "out") as first:
        assert first.stdout.readline() == "writing\n"
        os.kill(first.pid, signal.SIGSTOP)
        owner = tmp_path / "out" / locks.OWNER_FILE
        owner.write_text(json.dumps({"id": "another", "pid": "1", "host": "node7"}))
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(timeout=30) == 2
        assert first.stderr.read().endswith("process 1 on node7 took the folder over while this one was suspended; stopped\n")
    assert json.loads(owner.read_text())["id"] == "another"


def test_a_writer_on_another_machine_holds_the_folder_for_as_long_as_it_renews_its_file(no_flock, tmp_path):
    owner = tmp_path / locks.OWNER_FILE
    owner.write_text(json.dumps({"host": "node7", "pid": "12", "machine": "another boot", "started": "1", "id": "x"}))
    with pytest.raises(InputError, match="is being written by process 12 on node7; wait for it or stop it"):
        locks.FolderLock(tmp_path)
    assert locks.is_locked(tmp_path)
    long_ago = time.time() - 2 * locks.ABANDONED_AFTER_S
    os.utime(owner, (long_ago, long_ago))
    assert not locks.is_locked(tmp_path)
    lock = locks.FolderLock(tmp_path)
    assert locks.is_locked(tmp_path)
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK_FILE]


def test_a_process_id_that_is_another_process_by_now_holds_nothing(no_flock, tmp_path):
    alive = {"host": "here", "pid": str(os.getpid()), "machine": locks._machine(), "started": "1", "id": "x"}
    (tmp_path / locks.OWNER_FILE).write_text(json.dumps(alive))
    locks.FolderLock(tmp_path).release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_an_owner_file_that_cannot_be_read_expires_like_any_other(content, no_flock, tmp_path):
    owner = tmp_path / locks.OWNER_FILE
    owner.write_text(content)
    with pytest.raises(InputError, match="is being written by process"):
        locks.FolderLock(tmp_path)
    os.utime(owner, (0, 0))
    locks.FolderLock(tmp_path).release()


def test_a_refusal_of_another_kind_is_no_reason_to_go_on_without_flock(monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with pytest.raises(InputError, match="cannot be written to"), Stage(tmp_path, {}):
        pass

"""Ctrl-C ends a script with one line, whatever works for it, and the same command continues."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sightsound.engines.base import Sampling
from sightsound.engines.openai import _Run
from tests.support.house_server import HouseServer, chat


def interrupted(command, is_working):
    """Start a script, send its process group what a terminal sends once it works, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    deadline = time.monotonic() + 60
    while not is_working(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=30)
    return process.returncode, message


def assert_one_line(ended):
    code, message = ended
    assert code == 130 and "Traceback" not in message and "KeyboardInterrupt" not in message, message
    assert message.rstrip().splitlines()[-1] == "stopped; the same command continues", message


def test_a_script_whose_threads_ask_a_server_is_stopped_in_one_line(tiny_dataset, tiny_world, tmp_path):
    asked, end = threading.Event(), threading.Event()

    def reply(body):
        asked.set()
        end.wait(60)
        return chat(*["A"] * body["n"])

    with HouseServer(reply) as server:
        served = ["--model", "other", "--base_url", server.base_url]
        of_traces = ["--dataset", tiny_dataset, "--media_dir", tiny_world / "clips", "--output_dir", tmp_path / "traces"]
        of_run = ["--dataset", tiny_dataset, "--split", "validation", "--output_dir", tmp_path / "run"]
        commands = [["dataset_builders/traces.py", *of_traces, *served], ["-m", "evaluation", "run", *of_run, *served]]
        ended = []
        for command in commands:
            asked.clear()
            ended.append(interrupted(command, lambda _: asked.is_set()))
        end.set()
    for each in ended:
        assert_one_line(each)


def test_a_signal_that_does_not_wake_the_wait_for_a_result_is_handled_soon():
    """As one that comes between the last look for signals and the wait. Another thread gets it, so the wait goes on."""

    class Interrupted(Exception):
        pass

    def handle(*_):
        raise Interrupted

    run = _Run(Sampling(1, 0.0, 8, 0), lambda key: None, iter(()), threading.Semaphore(1), 1)

    def interrupt():
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        time.sleep(5)
        run.results.put(None)  # ends a wait that the signal did not end

    before = signal.signal(signal.SIGUSR1, handle)
    started = time.monotonic()
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(Interrupted):
            run.next_result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - started < 4


def test_a_build_whose_processes_start_or_decode_is_stopped_in_one_line(tiny_world, tmp_path):
    command = ["dataset_builders/avqa_audio.py", "--train_annotations", tiny_world / "train_qa.json", "--num_proc", "2"]
    command += ["--validation_annotations", tiny_world / "val_qa.json", "--media_dir", tiny_world / "clips"]

    def has_workers(pid):
        children = subprocess.run(["ps", "-ww", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
        return "spawn_main" in children.stdout

    assert_one_line(interrupted([*command, "--output_dir", tmp_path / "out"], has_workers))
    done = subprocess.run([sys.executable, *map(str, command), "--output_dir", str(tmp_path / "out")], check=False)
    assert done.returncode == 0

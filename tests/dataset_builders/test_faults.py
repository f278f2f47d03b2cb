"""A real server process that fails in every way, and clients that are killed: no row lost, none doubled, nothing paid twice."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sightsound.data import parquet, schema
from sightsound.engines import make_engine
from sightsound.engines.base import ChatRequest, EngineFlags, Sampling
from sightsound.engines.runner import run_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.stage import Journal
from tests.support import faulty_server
from tests.support.tiny import read_ledger, read_rows, start_script


CONCURRENCY, TIMEOUT_S = 16, 5.0  # an honest answer takes milliseconds, also on a busy machine


class Log:
    """What the server wrote down."""

    def __init__(self, path: Path):
        self.path = path

    def events(self) -> list[tuple[str, str]]:
        return [tuple(line.split()) for line in self.path.read_text().splitlines()]

    def count(self, event: str) -> Counter[str]:
        """How often each request met the event."""
        return Counter(seed for what, seed in self.events() if what == event)


@contextmanager
def serving(log: Path, **flags: float) -> Iterator[tuple[str, Log]]:
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    command = [sys.executable, faulty_server.__file__, "--log", str(log), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", Log(log)
        finally:
            process.kill()


def ask_through_faults(folder: Path, num_rows: int) -> tuple[dict[str, dict], Log]:
    sampling = Sampling(n=4, temperature=1.0, max_tokens=64, seed=0)
    keys = [str(i) for i in range(num_rows)]
    journal = Journal(folder / "journal.jsonl")
    with serving(folder / "log", fault_share=0.2) as (base_url, log):
        engine = make_engine(
            EngineFlags(model="tiny", sampling=sampling, base_url=[base_url], concurrency=CONCURRENCY, timeout_s=TIMEOUT_S)
        )
        run_requests(engine, keys, lambda key: ChatRequest(key, f"Question {key}?"), sampling, journal, "faults")
    journal.close()
    return journal.entries, log


@pytest.mark.parametrize("num_rows", [400, pytest.param(2000, marks=pytest.mark.storm)])
def test_no_row_is_lost_doubled_or_paid_twice_whatever_the_server_does(tmp_path, num_rows):
    entries, log = ask_through_faults(tmp_path, num_rows)
    assert sorted(entries, key=int) == [str(i) for i in range(num_rows)]
    lines = [json.loads(line)[0] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len(lines) == num_rows, "every row is journaled once"
    assert [entry for entry in entries.values() if "completions" not in entry] == [], "each fault passed, so each was answered"
    assert {len(entry["completions"]) for entry in entries.values()} == {4}
    answered = log.count(faulty_server.ANSWERED)
    assert (len(answered), set(answered.values())) == (num_rows, {1}), "what had succeeded is not asked again"
    met = Counter(event for event, _ in log.events())
    assert set(faulty_server.FAULTS) - {faulty_server.REFUSAL} <= set(met), "every kind of fault was met"
    assert 0.15 < 1 - met[faulty_server.ANSWERED] / met["asked"] < 0.25
    refused = [e for e in entries.values() if e["completions"][0]["finish_reason"] == "refusal"]
    assert refused and all(e["completions"][0]["text"] == "I can't help with that." for e in refused)


NUM_QUESTIONS, KILL_CONCURRENCY = 240, 4


@pytest.fixture(scope="module")
def many_questions(questions, tmp_path_factory) -> Path:
    """The tiny dataset's rows again and again under ids of their own."""
    folder = tmp_path_factory.mktemp("many")
    rows = [{**questions[i % len(questions)], "id": str(i)} for i in range(NUM_QUESTIONS)]
    parquet.write_parquet(rows, schema.avqa_audio_features(), folder / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Many\n", {"default": {"train": "data/*.parquet"}})
    return folder


@pytest.mark.storm
def test_after_fifty_kills_at_random_moments_the_ledger_is_that_of_an_uninterrupted_run(
    tmp_path, tiny_world, many_questions, storm_seed
):
    num_kills = 50
    flags = {"dataset": many_questions, "split": "train", "media_dir": tiny_world / "clips", "model": "scripted"}
    flags |= {"num_traces": 2, "num_frames": 2, "concurrency": KILL_CONCURRENCY}
    draw = random.Random(storm_seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Slow enough that the kills fall over the whole run: each lets it go on for a share of the rows that are left.
    with serving(tmp_path / "whole.log", delay_s=0.02) as (base_url, log):
        assert start_script("dataset_builders/traces.py", **flags, base_url=base_url, output_dir=whole).wait() == 0
    assert log.count("asked").total() == NUM_QUESTIONS
    with serving(tmp_path / "killed.log", delay_s=0.02) as (base_url, log):
        for i in range(num_kills):
            process = start_script("dataset_builders/traces.py", **flags, base_url=base_url, output_dir=killed)
            kill_at = log.count("asked").total() + draw.uniform(0, NUM_QUESTIONS / num_kills)
            while process.poll() is None and log.count("asked").total() < kill_at:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (killed / "ledger.parquet").exists(), f"kill {i} came too late to interrupt anything"
        assert start_script("dataset_builders/traces.py", **flags, base_url=base_url, output_dir=killed).wait() == 0
    asked = log.count("asked")
    assert len(asked) == NUM_QUESTIONS
    assert asked.total() - NUM_QUESTIONS <= KILL_CONCURRENCY * num_kills, "at most what was in flight is asked again"
    assert max(asked.values()) > 1, "no kill hit a request: that proves nothing"
    assert read_ledger(killed) == read_ledger(whole)
    assert read_rows(killed) == read_rows(whole)

"""The Batch API gives what single requests would, whatever becomes of a batch, and no kill has anything paid twice."""

import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.frames import Frames
from sightsound.engines import openai_account, openai_protocol
from sightsound.engines.base import ChatRequest, Sampling, StreamingEngine
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.openai_batch import BATCHES_FILE, OpenAIBatchEngine
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.runner import MAX_UNANSWERED, run_requests
from sightsound.stage import Journal
from tests.support.batch_server import DROPPED, MOMENTS, UNHEARD, BatchServer, Plan


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=8, seed=0)
SAMPLED = Sampling(n=2, temperature=1.0, max_tokens=8, seed=1)
QUICK = {"poll_s": (0.001, 0.002), "settle_s": 0.0}


def build(key: str) -> ChatRequest:
    if "unreadable" in key:
        raise MediaError("undecodable", f"{key} cannot be read")
    noise = np.random.default_rng(sum(key.encode())).integers(-999, 999, 160) / 32768
    return ChatRequest(key, f"What is {key}?", audio=noise.astype(np.float32), note={"heard_s": float(len(key))})


def names(num: int) -> list[str]:
    return [f"q{i}/0#0" for i in range(num)]


def ask(engine: OpenAIEngine, folder: Path, keys: list[str], sampling: Sampling = GREEDY) -> dict[str, dict]:
    journal = Journal(folder / "journal.jsonl")
    try:
        run_requests(engine, keys, build, sampling, journal, "test")
    finally:
        journal.close()
    return journal.entries


def batched(server: BatchServer, folder: Path, **more) -> OpenAIBatchEngine:
    return OpenAIBatchEngine("tiny", server.base_url, folder / BATCHES_FILE, **{**QUICK, **more})


def online(server: BatchServer, folder: Path, keys: list[str], sampling: Sampling = GREEDY) -> dict[str, dict]:
    """What `OpenAIEngine` has of the same requests."""
    folder.mkdir(exist_ok=True)
    return ask(OpenAIEngine("tiny", server.base_url, 4), folder, keys, sampling)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(openai_protocol, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(openai_account, "RETRIES", 10)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_batch_gives_what_single_requests_give(tmp_path, sampling):
    keys = [*names(7), "an unreadable clip", "a key of more than 64 characters " * 3]
    with BatchServer() as server:
        expected = online(server, tmp_path / "online", keys, sampling)
        sent = dict(server.bodies)
        engine = batched(server, tmp_path, max_requests=3)
        assert isinstance(engine, StreamingEngine)
        assert ask(engine, tmp_path, keys, sampling) == expected
    assert {body["messages"][0]["content"][-1]["text"]: body for body in server.bodies.values()} == sent
    assert (engine.window_s, engine.revision) == (30.0, "tiny at its server")
    assert expected["an unreadable clip"] == {"outcome": "undecodable", "detail": "an unreadable clip cannot be read"}
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [3, 3, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches.jsonl", "journal.jsonl", "online"]


def test_a_batch_whose_model_refuses_sampling_fields_is_made_again_without_them(tmp_path):
    """As of OpenAI's reasoning models; which names only one of the fields, and each batch may take a day."""
    with BatchServer(unknown=("top_p",)) as server:
        entries = ask(batched(server, tmp_path), tmp_path, names(3))
    assert len(server.batches) == 2 and {entry["completions"][0]["finish_reason"] for entry in entries.values()} == {"stop"}
    for entry in entries.values():
        drawn = entry["sampling"]
        assert (drawn["temperature"], drawn["top_p"], drawn["presence_penalty"], drawn["top_k"]) == (0.0, None, None, None)


def test_a_batch_holds_the_fields_that_were_asked_for_and_rows_record_them(tmp_path):
    options = RequestOptions({"max_completion_tokens": 9, "temperature": 1}, ("max_tokens", "seed", "top_p"))
    with BatchServer() as server:
        entries = ask(batched(server, tmp_path, options=options), tmp_path, names(2))
    for body in server.bodies.values():
        assert (body["max_completion_tokens"], body["temperature"]) == (9, 1)
        assert not {"max_tokens", "seed", "top_p"} & body.keys()
    for entry in entries.values():
        drawn = {name: value for name, value in entry["sampling"].items() if value is not None}
        assert drawn == {"n": 1, "temperature": 1, "max_completion_tokens": 9, "presence_penalty": 0, "frequency_penalty": 0}


def test_frames_travel_in_a_batch_as_they_do_alone(tmp_path):
    request = ChatRequest("v", "What is seen?", video=Frames(np.zeros((2, 28, 28, 3), np.uint8), 2.0))
    with BatchServer() as server:
        list(OpenAIEngine("tiny", server.base_url, 1).complete([request], GREEDY))
        list(batched(server, tmp_path).complete([request], GREEDY))
    assert server.bodies["v"] == server.bodies["What is seen?"]
    assert server.bodies["v"]["media_io_kwargs"]["video"]["fps"] == 2.0


def test_files_are_cut_at_the_limits_of_bytes(tmp_path):
    with BatchServer() as server:
        engine = batched(server, tmp_path, max_bytes=2_000)
        assert len(ask(engine, tmp_path, names(7))) == 7
    sizes = [len(server.files[b["input_file_id"]]) for b in server.batches.values()]
    assert max(sizes) <= 2_000 and len(sizes) > 2
    assert set(server.billed.values()) == {1}
    with BatchServer() as server:
        assert len(ask(batched(server, tmp_path, max_bytes=1), tmp_path, names(10))) == 10, "a request alone goes all the same"


@pytest.mark.parametrize(
    "plan",
    [
        Plan(doubled=True),
        Plan(dropped=frozenset({0, 4})),
        Plan(statuses={1: 500, 2: 429, 3: "timeout"}, garbled=frozenset({0})),
        Plan("expired", num_begun=3),
        Plan("expired", num_begun=0),
    ],
    ids=["doubled lines", "missing lines", "passing failures", "expired", "nothing before it expired"],
)
def test_what_a_batch_does_not_answer_is_asked_again_and_nothing_else(tmp_path, plan):
    with BatchServer([plan]) as server:
        expected = online(server, tmp_path / "online", names(6))
        engine = batched(server, tmp_path)
        assert ask(engine, tmp_path, names(6)) == expected
    assert server.billed == dict.fromkeys(names(6), 1)
    totals = [batch["request_counts"]["total"] for batch in server.batches.values()]
    assert totals == [6, engine.num_retries] if engine.num_retries else [6]


@pytest.mark.parametrize(
    ("plan_for", "num_batches", "outcome", "message"),
    [
        (lambda i: Plan(statuses={i: 400}), 1, "refused", "answered 400: .*fault 400"),
        (lambda i: Plan(statuses={i: 413}), 1, "refused", "answered 413: .*fault 413"),
        (lambda i: Plan(statuses={i: 500}), 3, "server_error", "answered 500: .*fault 500"),
        (lambda i: Plan(statuses={i: 429}), 3, "server_error", "answered 429: .*fault 429"),
        (lambda i: Plan(statuses={i: "timeout"}), 3, "server_error", "answered 408: .*timed out"),
        (lambda i: Plan(dropped=frozenset({i})), 3, "server_error", "results of batch batch_2 at .* lack a request"),
        (lambda i: Plan(garbled=frozenset({i})), 3, "bad_response", "did not answer with a chat completion: no choices"),
    ],
    ids=["400", "413", "500", "429", "timeout", "missing", "garbled"],
)
def test_a_request_that_fails_time_after_time_is_an_outcome(tmp_path, plan_for, num_batches, outcome, message):
    with BatchServer([plan_for(1), plan_for(0), plan_for(0)]) as server:
        entries = ask(batched(server, tmp_path), tmp_path, names(4))
    assert len(server.batches) == num_batches
    failed = entries.pop(names(4)[1])
    assert failed["outcome"] == outcome and re.search(message, failed["detail"])
    assert len(entries) == 3 and all("completions" in entry for entry in entries.values())


def test_a_refusal_reads_as_that_of_a_single_request(tmp_path):
    with BatchServer([Plan(statuses={0: 400})], faults={"POST /chat": [None, 400]}) as server:
        online(server, tmp_path / "online", ["answered"])
        expected = online(server, tmp_path / "online", ["answered", "refused"])
        entries = ask(batched(server, tmp_path), tmp_path, ["refused", "answered"])
    assert entries == expected and "outcome" in entries["refused"]


def test_many_refusals_among_answers_do_not_stop_the_run(tmp_path):
    num = 6 * MAX_UNANSWERED
    with BatchServer([Plan(statuses=dict.fromkeys(range(num // 2), 400))]) as server:
        entries = ask(batched(server, tmp_path), tmp_path, names(num))
    assert [entries[key].get("outcome") for key in names(num)] == ["refused"] * (num // 2) + [None] * (num // 2)


def test_nothing_but_refusals_stops_the_run_and_a_rerun_asks_again(tmp_path):
    keys = names(MAX_UNANSWERED + 1)
    with BatchServer([Plan(statuses=dict.fromkeys(range(len(keys)), 400))]) as server:
        with pytest.raises(InputError, match=r"the server answers no request: .*fault 400.*rerun to continue"):
            ask(batched(server, tmp_path), tmp_path, keys)
        assert len(ask(batched(server, tmp_path), tmp_path, keys)) == len(keys)
    assert server.billed == dict.fromkeys(keys, 1)


NO_BATCHES = Plan("failed", errors=({"code": "model_not_found", "message": "The model `tiny` takes\nno batches", "line": 1},))


@pytest.mark.parametrize(
    ("plans", "message", "num_kept"),
    [
        ([NO_BATCHES], r"did not accept batch batch_0: line 1: The model `tiny` takes no batches; does tiny take batches\?", 0),
        ([Plan("cancelled", num_begun=2)], "batch batch_0 at .* was cancelled; finished requests are kept", 2),
        ([Plan("cancelled", num_begun=0)], "batch batch_0 at .* was cancelled", 0),
        ([Plan(statuses={3: 401})], "answered 401: .*fault 401.*OPENAI_API_KEY", 3),
        ([Plan(statuses=dict.fromkeys(range(4), 429))] * 3, "answered 429: .*fault 429", 0),
        ([Plan("expired", num_begun=0)] * 3, "batch batch_2 at .* expired without an answer", 0),
    ],
    ids=["failed", "cancelled", "cancelled at once", "401", "429", "expired thrice"],
)
def test_what_is_no_fault_of_a_request_stops_the_run_and_a_rerun_goes_on(tmp_path, plans, message, num_kept):
    with BatchServer(plans) as server:
        with pytest.raises(InputError, match=message) as stopped:
            ask(batched(server, tmp_path), tmp_path, names(4))
        assert "\n" not in str(stopped.value)
        kept = (tmp_path / "journal.jsonl").read_text().splitlines()
        assert len(kept) == num_kept
        assert ask(batched(server, tmp_path), tmp_path, names(4)) == online(server, tmp_path / "online", names(4))
    assert server.billed == dict.fromkeys(names(4), 1)


@pytest.mark.parametrize(("max_requests", "max_enqueued"), [(2, 5), (8, 3)], ids=["fewer", "smaller"])
def test_the_limit_of_enqueued_tokens_is_kept_to(tmp_path, max_requests, max_enqueued):
    with BatchServer(max_enqueued=max_enqueued) as server:
        entries = ask(batched(server, tmp_path, max_requests=max_requests), tmp_path, names(8))
    assert len(entries) == 8 and server.billed == dict.fromkeys(names(8), 1)


def test_a_request_beyond_the_limit_of_enqueued_tokens_stops_the_run(tmp_path):
    with BatchServer(max_enqueued=0) as server, pytest.raises(InputError, match="Enqueued token limit reached; finished"):
        ask(batched(server, tmp_path), tmp_path, names(4))


ROUTES = ["POST /files", "POST /batches", "GET /batches", "GET /batches/*", "GET /files/*"]


@pytest.mark.parametrize("fault", [500, 429, DROPPED, UNHEARD])
@pytest.mark.parametrize("route", ROUTES)
def test_passing_faults_of_the_server_cost_nothing(tmp_path, route, fault):
    with BatchServer(faults={route: [fault, fault]}) as server:
        entries = ask(batched(server, tmp_path, max_requests=3), tmp_path, names(5))
    assert len(entries) == 5 and server.billed == dict.fromkeys(names(5), 1)
    assert server.faults[route] == []


@pytest.mark.parametrize(
    ("route", "page"),
    [*itertools.product(["POST /files", "POST /batches", "GET /batches/*"], [b"<html>", {}, [1]]), ("GET /files/*", b"<html>")],
)
def test_what_is_no_answer_of_the_batch_api_is_quoted(tmp_path, monkeypatch, route, page):
    monkeypatch.setattr(openai_account, "CREATE_TRIES", 1)
    with (
        BatchServer(faults={route: [page]}) as server,
        pytest.raises(
            InputError, match=r"as the Batch API does: no (id|status|lines of JSON) in .*; finished requests are kept"
        ),
    ):
        ask(batched(server, tmp_path), tmp_path, names(2))


@pytest.mark.parametrize("status", [401, 404, 400])
def test_what_waiting_cannot_mend_stops_the_run_at_once(tmp_path, status):
    with BatchServer(faults={"GET /batches": [status]}) as server:
        with pytest.raises(InputError, match=f"answered {status}: .*fault {status}.*rerun to continue"):
            ask(batched(server, tmp_path), tmp_path, names(2))
        assert len(server.events) == 1


def test_a_server_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(openai_account, "FIRST_RETRIES", 0)
    with BatchServer() as server:
        pass
    with pytest.raises(InputError, match=f"no answer from {server.base_url}: is the server running"):
        ask(batched(server, tmp_path), tmp_path, names(2))


def test_a_batch_that_the_account_does_not_know_is_not_paid_again_unasked(tmp_path):
    with BatchServer([Plan("cancelled", num_begun=1)]) as server:
        with pytest.raises(InputError, match="cancelled"):
            ask(batched(server, tmp_path), tmp_path, names(2))
        server.batches.clear()
        with pytest.raises(InputError, match=r"batch batch_0, .* is not known at .*batches.jsonl to submit its requests again"):
            ask(batched(server, tmp_path), tmp_path, names(2))


def test_a_rerun_reads_what_it_lacks_of_an_earlier_batch_and_submits_the_rest(tmp_path):
    with BatchServer() as server:
        whole = online(server, tmp_path / "online", names(8))
        ask(batched(server, tmp_path, max_requests=3), tmp_path, names(6))
        lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "journal.jsonl").write_text("".join(lines[:2]))
        assert ask(batched(server, tmp_path), tmp_path, names(8)) == whole
        assert [batch["request_counts"]["total"] for batch in server.batches.values()] == [3, 3, 2]
        events = list(server.events)
        ask(batched(server, tmp_path), tmp_path, names(8))
        assert server.events == events, "nothing is wanted, nothing is asked"


def test_a_batch_that_was_not_recorded_is_found_by_its_file_also_when_files_are_cut_otherwise(tmp_path):
    with BatchServer(page=1) as server:
        ask(batched(server, tmp_path, max_requests=3), tmp_path, names(6))
        record, journal = tmp_path / BATCHES_FILE, tmp_path / "journal.jsonl"
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join([lines[0], *lines[2:]]))
        journal.unlink()
        assert len(ask(batched(server, tmp_path, max_requests=2), tmp_path, names(6))) == 6
    assert len(server.batches) == 2 and server.billed == dict.fromkeys(names(6), 1)


def test_of_a_file_without_a_batch_none_can_be_made_any_more(tmp_path):
    """A request to make it may still be under way when the rerun has looked for it."""
    with BatchServer(faults={"POST /batches": [401]}) as server:
        with pytest.raises(InputError, match="answered 401"):
            ask(batched(server, tmp_path), tmp_path, names(2))
        record = tmp_path / BATCHES_FILE
        record.write_text(record.read_text().splitlines(keepends=True)[0])
        (late,) = server.files
        assert len(ask(batched(server, tmp_path), tmp_path, names(2))) == 2
    assert late not in server.files
    assert server.billed == dict.fromkeys(names(2), 1)


def test_a_later_attempt_is_a_batch_of_its_own(tmp_path):
    again = replace(GREEDY, temperature=1.0, seed=1)
    with BatchServer() as server:
        engine = batched(server, tmp_path)
        ask(engine, tmp_path, names(4))
        entries = ask(engine, tmp_path, ["q1/0#1", "q3/0#1"], again)
        expected = online(server, tmp_path / "online", names(4)) | online(
            server, tmp_path / "online", ["q1/0#1", "q3/0#1"], again
        )
        assert entries == expected
        (tmp_path / "journal.jsonl").unlink()
        assert ask(batched(server, tmp_path), tmp_path, ["q1/0#1", "q3/0#1"], again).items() <= expected.items()
    assert server.billed == dict.fromkeys([*names(4), "q1/0#1", "q3/0#1"], 1)


def test_a_run_that_lost_its_folder_finds_its_batches_and_no_others(tmp_path):
    plans = [Plan("expired", num_begun=0), Plan("expired", num_begun=1), Plan(), NO_BATCHES, Plan()]
    folders = [tmp_path / name for name in ("first", "second", "third", "fourth")]
    for folder in folders:
        folder.mkdir()
    with BatchServer(plans) as server:
        expected = ask(batched(server, folders[0]), folders[0], names(4))
        assert len(server.batches) == 3
        assert ask(batched(server, folders[1]), folders[1], names(4)) == expected
        assert len(server.batches) == 3 and server.billed == dict.fromkeys(names(4), 1)
        other = replace(GREEDY, max_tokens=9)
        with pytest.raises(InputError, match="did not accept"):
            ask(batched(server, folders[2]), folders[2], names(4), other)
        assert ask(batched(server, folders[3]), folders[3], names(4), other) != expected
    assert server.billed == dict.fromkeys(names(4), 2)


NUM_KILLED, PER_BATCH = 23, 7
PLANS = [Plan(statuses={2: 500}), Plan("expired", num_begun=4), Plan(dropped=frozenset({1}))]
Kill = Callable[[str, str], bool]  # whether this is the moment


def ask_in_a_process(base_url: str, folder: str) -> None:
    engine = OpenAIBatchEngine("tiny", base_url, Path(folder) / BATCHES_FILE, max_requests=PER_BATCH, **QUICK)
    ask(engine, Path(folder), names(NUM_KILLED))


# Starts a process in milliseconds: what it forks has the imports done, and none of this process's threads.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.test_batches", "openai.resources.batches", "openai.resources.chat", "httpx2", "tqdm"])


def run_killed(kills: list[Kill], folder: Path) -> tuple[BatchServer, dict[str, dict], int]:
    """Kill one client after the other, then let one finish: the server, the journal, and how many kills hit."""
    process, kill, hits = None, None, 0

    def watch(event: str, moment: str) -> None:
        if kill is not None and kill(event, moment):
            time.sleep(random.uniform(0, 0.01))  # where it has its answer, it goes on meanwhile
            os.kill(process.pid, signal.SIGKILL)

    with BatchServer(PLANS, refused=names(NUM_KILLED)[4:5], watch=watch) as server:
        for each in [*kills, None]:
            process = FORKSERVER.Process(target=ask_in_a_process, args=(server.base_url, str(folder)))
            kill = each
            process.start()
            process.join(60)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, "a client that is not killed finishes"
            hits += 1
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().replace(server.base_url, "URL").splitlines()]
    assert len(journal) == len(dict(journal)), "every request is journaled once"
    return server, dict(journal), hits


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, dict]:
    server, entries, _ = run_killed([], tmp_path_factory.mktemp("undisturbed"))
    assert Counter(entry.get("outcome") for entry in entries.values()) == {None: NUM_KILLED - 1, "refused": 1}
    assert len(server.batches) > len(PLANS)
    return entries


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_request_costs_nothing(tmp_path, undisturbed, moment):
    """Between the upload and the batch, after the batch and before its id is recorded, and everywhere else."""
    kills = [lambda *seen, route=route: seen == (route, moment) for route in ROUTES]
    server, entries, hits = run_killed(kills, tmp_path)
    assert hits == len(ROUTES)
    assert entries == undisturbed
    assert server.billed == dict.fromkeys(server.billed, 1), "nothing is paid twice"


@pytest.mark.storm
@pytest.mark.parametrize("draw", range(6))
def test_ten_kills_at_random_moments_cost_nothing(tmp_path, undisturbed, storm_seed, draw):
    drawn = random.Random(storm_seed + draw)

    def after(num_moments: int) -> Kill:
        left = itertools.count(num_moments, -1)
        return lambda *_: next(left) == 0

    # Early ones, or the first would let too much be done for the others to hit anything.
    server, entries, hits = run_killed([after(drawn.randint(0, 20)) for _ in range(10)], tmp_path)
    assert hits >= 4
    assert entries == undisturbed
    assert server.billed == dict.fromkeys(server.billed, 1), "nothing is paid twice"

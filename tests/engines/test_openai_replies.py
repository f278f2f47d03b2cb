"""Replies of servers of different vendors are read alike: text with its reasoning, why it ended, and what is no answer."""

import gzip
import json
import re
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sightsound.cli import InputError
from sightsound.data.schema import BAD_RESPONSE, REFUSED, SERVER_ERROR
from sightsound.engines import openai as openai_engine
from sightsound.engines import openai_protocol
from sightsound.engines.base import ChatRequest, ChatResult, Sampling
from sightsound.engines.openai import BUSY_TRIES, TRIES, OpenAIEngine
from sightsound.engines.runner import run_requests
from sightsound.method.answers import extract_think, has_trace_format, parse_answer
from sightsound.stage import Journal
from tests.support.house_server import HouseServer, chat, choice, text_of


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
TRACE = "<think>I hear a dog.</think><answer>dog</answer>"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(openai_protocol, "FIRST_DELAY_S", 0.0)


def ask(server: HouseServer, *texts: str, concurrency: int = 1) -> dict[str, ChatResult]:
    engine = OpenAIEngine("tiny", server.base_url, concurrency)
    requests = [ChatRequest(text, text) for text in texts or ("Heard?",)]
    return {result.key: result for part in engine.complete(requests, GREEDY) for result in part}


def completion_of(reply: Any, **server: Any) -> tuple[str, str]:
    """The text and the finish reason of a reply, through the client and HTTP."""
    with HouseServer(lambda _: reply, **server) as house:
        (result,) = ask(house).values()
    assert result.outcome is None, result.detail
    return result.completions[0].text, result.completions[0].finish_reason


@pytest.mark.parametrize(
    "message",
    [
        {"content": "<answer>dog</answer>", "reasoning_content": "I hear a dog."},  # DeepSeek, SGLang, llama.cpp, older vLLM
        {"content": "<answer>dog</answer>", "reasoning": "I hear a dog."},  # OpenRouter, Ollama, newer vLLM
        {"content": "<answer>dog</answer>", "reasoning": "I hear a dog.", "reasoning_content": "I hear a dog."},
        {"content": "<answer>dog</answer>", "reasoning_content": "\n<think>I hear a dog.</think>\n"},
        {"content": "<answer>dog</answer>", "reasoning_content": None, "reasoning": "I hear a dog."},
        {"content": "I hear a dog.</think><answer>dog</answer>"},  # the template wrote <think>
        {"content": "a dog.</think><answer>dog</answer>", "reasoning_content": "I hear "},
        {"content": TRACE, "reasoning": "I hear a dog."},  # the same twice
        {"content": "<answer>dog</answer>", "reasoning_details": [{"type": "reasoning.text", "text": "I hear a dog."}]},
        {"content": TRACE},
        {"content": [{"type": "text", "text": TRACE}]},
        {"content": [{"type": "text", "text": TRACE[:9]}, {"type": "text", "text": TRACE[9:]}, {"type": "reference"}, None]},
        {
            "content": [  # Mistral
                {"type": "thinking", "thinking": [{"type": "text", "text": "I hear a dog."}]},
                {"type": "text", "text": "<answer>dog</answer>"},
            ]
        },
    ],
)
def test_reasoning_and_content_are_one_text(message):
    text, reason = completion_of({"choices": [choice(**message)]})
    assert extract_think(text) == "I hear a dog." and has_trace_format(text), text
    assert (parse_answer(text, ["bell", "dog"]).index, reason) == (1, "stop")


def test_reasoning_that_was_cut_is_not_closed():
    assert completion_of({"choices": [choice("length", content=None, reasoning_content="I hear")]}) == (
        "<think>I hear",
        "length",
    )
    assert completion_of({"choices": [choice(content=None, reasoning="I hear")]}) == ("<think>I hear</think>", "stop")


def test_a_text_without_reasoning_stays_as_it_is():
    for message in ({}, {"reasoning": None}, {"reasoning_content": ""}, {"reasoning": {"effort": "low"}}, {"reasoning": " \n"}):
        assert completion_of({"choices": [choice(content="dog", **message)]}) == ("dog", "stop")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        *((word, "stop") for word in ("stop", "eos_token", "end_turn", "STOP", "stop_sequence", "eos", "tool_calls", None, 3)),
        *((word, "length") for word in ("length", "MAX_TOKENS", "max_tokens", "model_length", "model_context_window_exceeded")),
        *((word, "content_filter") for word in ("content_filter", "SAFETY", "content-filter", "RECITATION", "sensitive")),
        ("refusal", "refusal"),
    ],
)
def test_finish_reasons_are_read_by_their_sense(output, reason):
    assert completion_of({"choices": [choice(output, content="dog")]}) == ("dog", reason)


def test_a_finish_reason_that_is_missing_ends_a_text():
    reply = chat("dog")
    del reply["choices"][0]["finish_reason"]
    assert completion_of(reply) == ("dog", "stop")


def test_what_a_filter_or_the_limit_left_nothing_of_is_an_empty_answer():
    for reason in ("content_filter", "length"):
        for message in (None, {}, {"role": "assistant"}, {"content": None}):
            reply = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
            assert completion_of(reply) == ("", reason)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(r"dog \ud83d", "dog \ufffd"), (r"\ude00 dog", "\ufffd dog"), (r"a\ud83d\ud83d\ude00b", "a\ufffd\N{GRINNING FACE}b")],
)
@pytest.mark.parametrize("place", ["content", "refusal", "reasoning"])
def test_half_a_surrogate_pair_is_replaced(tmp_path, content, expected, place):
    message = {"content": "yes", "reasoning": "PLACE"} if place == "reasoning" else {place: "PLACE"}
    reply = json.dumps({"choices": [choice(**message)]}).replace("PLACE", content).encode()
    with HouseServer(lambda _: reply) as server, closing(Journal(tmp_path / "journal.jsonl")) as journal:
        run_requests(
            OpenAIEngine("tiny", server.base_url, 1), ["a"], lambda key: ChatRequest(key, key), GREEDY, journal, "test"
        )
        text = journal["a"]["completions"][0]["text"]
    assert expected in text
    assert expected in (tmp_path / "journal.jsonl").read_text(encoding="utf-8")


def test_half_a_surrogate_pair_in_an_error_is_replaced(tmp_path):
    refusal = (400, rb'{"error": {"message": "too long: \ud83d"}}')
    with HouseServer(lambda body: refusal if text_of(body) == "a" else chat("yes")) as server:
        journal = Journal(tmp_path / "journal.jsonl")
        engine = OpenAIEngine("tiny", server.base_url, 1)
        run_requests(engine, ["a", "b"], lambda key: ChatRequest(key, key), GREEDY, journal, "test")
        journal.close()
    assert "too long: \ufffd" in journal["a"]["detail"]


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 0}, "none", {"prompt_tokens": 1.5}]
)
def test_tokens_that_are_not_counted_change_nothing(usage):
    assert completion_of(chat("dog") | {"usage": usage, "error": None, "object": None}) == ("dog", "stop")


def test_replies_that_are_compressed_or_padded_are_read():
    plain = json.dumps(chat("dog")).encode()
    assert completion_of(gzip.compress(plain), headers={"Content-Encoding": "gzip"}) == ("dog", "stop")
    assert completion_of(b"\n\n  " + plain + b"\n") == ("dog", "stop")
    assert completion_of(b"\xef\xbb\xbf" + plain) == ("dog", "stop")
    assert completion_of(plain, headers={"Content-Type": "text/plain"}) == ("dog", "stop")


FAILURES = {
    "finish_reason error": {"choices": [choice("error", content="dog")]},
    "finish_reason of a lost connection": {"choices": [choice("network_error", content="dog")]},
    "finish_reason abort": {"choices": [choice("abort", content="")]},
    "error in a choice": {"choices": [choice(content="dog") | {"error": {"code": 502, "message": "upstream"}}]},
    "final error in a choice": {"choices": [choice(content="dog") | {"error": {"code": 400, "message": "upstream"}}]},
    "busy in a choice": {"choices": [choice(content="dog") | {"error": {"code": 429, "message": "upstream"}}]},
    "error in place of choices": {"error": {"code": 502, "message": "upstream"}},
    "error beside choices": chat("dog") | {"error": {"message": "upstream"}},
    "error in words": {"error": "upstream"},
    "busy in place of choices": {"error": {"code": "429", "message": "upstream"}},
    "busy in words": {"error": {"code": "rate_limit_exceeded", "message": "upstream"}},
    "error of older vLLM": {"object": "error", "message": "upstream", "code": 500},
    "no choices": {"choices": []},
    "page": b"<html>upstream</html>",
    "nothing": b"",
    "stream": b'data: {"choices": []}\n\n',
}


@pytest.mark.parametrize("reply", FAILURES.values(), ids=FAILURES)
def test_an_error_with_status_200_is_tried_again(reply):
    replies = iter([reply, reply])
    with HouseServer(lambda _: next(replies, chat("bell"))) as server:
        (result,) = ask(server).values()
    assert (result.completions[0].text, len(server.bodies)) == ("bell", 3)


@pytest.mark.parametrize(
    ("reply", "outcome", "num_asked", "output"),
    [
        (FAILURES["finish_reason error"], SERVER_ERROR, TRIES, "answered with an error"),
        (FAILURES["error in a choice"], SERVER_ERROR, TRIES, "answered with an error: .*upstream"),
        (FAILURES["page"], BAD_RESPONSE, TRIES, "did not answer with a chat completion"),
        ({"error": {"code": 400, "message": "too long"}}, REFUSED, 1, "answered 400: .*too long"),
    ],
)
def test_an_error_that_comes_again_and_again_is_the_outcome(reply, outcome, num_asked, output):
    with HouseServer(lambda body: reply if text_of(body) == "bad" else chat("dog")) as server:
        results = ask(server, "good", "bad", "fine")
    assert {key: result.outcome for key, result in results.items()} == {"good": None, "bad": outcome, "fine": None}
    assert sum(text_of(body) == "bad" for body in server.bodies) == num_asked
    assert re.search(output, results["bad"].detail)


def test_a_wrong_key_that_is_told_with_status_200_stops_the_run():
    reply = {"error": {"code": 401, "message": "No auth credentials found"}}
    with HouseServer(lambda _: reply) as server, pytest.raises(InputError, match=r"answered 401: .*No auth.*OPENAI_API_KEY"):
        ask(server)
    assert len(server.bodies) == 1


def test_what_the_provider_behind_a_router_said_is_told():
    error = {"message": "Provider returned error", "code": 400, "metadata": {"raw": "audio is longer than 30 s"}}
    with HouseServer(lambda body: (400, {"error": error}) if text_of(body) == "bad" else chat("dog")) as server:
        assert "audio is longer than 30 s" in ask(server, "good", "bad")["bad"].detail


@pytest.mark.parametrize("concurrency", [1, 2, 8])
@pytest.mark.parametrize("num_bad", [1, 2])
def test_429_for_one_request_alone_becomes_its_outcome(concurrency, num_bad):
    """Too many tokens a minute for this request, whenever it comes: OpenAI says that by a 429 too."""
    bad = [f"bad {i}" for i in range(num_bad)]
    refusal = (429, {"error": {"message": "Request too large on tokens per min", "code": "rate_limit_exceeded"}})
    keys = [bad[0], *(f"good {i}" for i in range(12)), *bad[1:], "good last"]
    with HouseServer(lambda body: refusal if text_of(body) in bad else chat("dog")) as server:
        results = ask(server, *keys, concurrency=concurrency)
    assert {key for key, result in results.items() if result.outcome == SERVER_ERROR} == set(bad)
    assert "answered 429: " in results[bad[0]].detail and len(results) == len(keys)
    for key in bad:
        assert BUSY_TRIES <= sum(text_of(body) == key for body in server.bodies) < 1000


def test_requests_that_wait_for_their_turn_at_a_limited_rate_are_all_answered():
    """One answer in 20 ms, whoever asks: no request is at fault, however often it gets a 429."""
    lock, last = threading.Lock(), 0.0

    def reply(_: Any) -> Any:
        nonlocal last
        with lock:
            if time.monotonic() < last + 0.02:
                return 429, {}
            last = time.monotonic()
        return chat("dog")

    with HouseServer(reply, headers={"retry-after-ms": "20"}) as server:
        results = ask(server, *(str(i) for i in range(60)), concurrency=16)
    assert len(server.bodies) > 300, "each was refused often, on average"
    assert len(results) == 60 and {result.outcome for result in results.values()} == {None}


def test_429_for_all_still_stops_the_run(monkeypatch):
    monkeypatch.setattr(openai_engine, "PATIENCE_S", 0.5)
    with HouseServer(lambda _: (429, {})) as server, pytest.raises(InputError, match=r"answered 429: .*rerun to continue"):
        ask(server, "a", "b")


def test_a_row_is_lost_to_no_reply(tmp_path: Path):
    """All kinds of failures in one run, one or two for each request: every one is answered, and once."""
    keys = [str(i) for i in range(2 * len(FAILURES))]
    left = {key: [[*FAILURES.values()][int(key) % len(FAILURES)]] * (1 + int(key) % 2) for key in keys}

    def reply(body):
        failures = left[text_of(body)]
        return failures.pop() if failures else chat("dog")

    with HouseServer(reply) as server, closing(Journal(tmp_path / "journal.jsonl")) as journal:
        run_requests(OpenAIEngine("tiny", server.base_url, 4), keys, lambda key: ChatRequest(key, key), GREEDY, journal, "test")
    lines = [json.loads(line)[0] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert sorted(lines) == sorted(keys)
    assert {entry["completions"][0]["text"] for entry in journal.entries.values()} == {"dog"}

"""Both engines answer alike, hear what they are given, survive failures, and continue after an interruption."""

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from sightsound.cli import InputError
from sightsound.data.audio import decode_audio
from sightsound.data.clips import MediaError
from sightsound.data.frames import Frames, load_frames
from sightsound.engines import make_engine, openai_protocol
from sightsound.engines import openai as openai_engine
from sightsound.engines.base import ChatRequest, ChatResult, Completion, EngineFlags, Sampling, StreamingEngine, Usage
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.openai_protocol import RequestFailure
from sightsound.engines.openai_replies import read_reply
from sightsound.engines.runner import run_requests
from sightsound.engines.transformers import TransformersEngine
from sightsound.stage import Journal
from tests.support.openai_server import DROP, ONE_CHOICE, OpenAIServer, model_answer


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
SAMPLED = Sampling(n=2, temperature=1.0, max_tokens=8, seed=0)


def results_for(engine, requests, sampling):
    """All results, in the order of the requests; an engine yields them as they are finished."""
    results = {result.key: result for part in engine.complete(requests, sampling) for result in part}
    return [results[request.key] for request in requests]


@pytest.fixture(scope="module")
def hearing(student_checkpoint) -> TransformersEngine:
    return TransformersEngine.load(str(student_checkpoint), batch_size=4, sampling=SAMPLED)


@pytest.fixture(scope="module")
def seeing(teacher_checkpoint) -> TransformersEngine:
    return TransformersEngine.load(str(teacher_checkpoint), batch_size=4, sampling=SAMPLED)


@pytest.fixture(scope="module")
def audio_requests(questions) -> list[ChatRequest]:
    """Texts of different lengths, so that a batch of them is padded."""
    sounds = [decode_audio(row["audio"]).waveform for row in questions[:6]]
    return [ChatRequest(f"a{i}", "What is heard? " * (i + 1), audio=sound) for i, sound in enumerate(sounds)]


@pytest.fixture(scope="module")
def video_requests(tiny_world) -> list[ChatRequest]:
    clips = sorted((tiny_world / "clips").glob("*.mp4"))[:3]
    frames = [load_frames(str(clip), num_frames=6, max_pixels=56 * 56) for clip in clips]
    return [ChatRequest(f"v{i}", "What is seen? " * (i + 1), video=video) for i, video in enumerate(frames)]


def said(engine, requests: Sequence[ChatRequest], sampling: Sampling = GREEDY) -> list[list[str]]:
    return [[completion.text for completion in result.completions] for result in results_for(engine, requests, sampling)]


def forward_of(engine: TransformersEngine, request: ChatRequest) -> tuple[list[int], np.ndarray]:
    """The prompt's token ids that reach the model, and the logits of the first token that it says."""
    seen = []

    def keep(_, __, inputs, output):
        seen.append((inputs["input_ids"][0].tolist(), output.logits[0, -1].numpy()))

    hook = engine.model.register_forward_hook(keep, with_kwargs=True)
    try:
        results_for(engine, [request], replace(GREEDY, max_tokens=1))
    finally:
        hook.remove()
    return seen[0]


def test_a_model_without_ears_or_eyes_is_refused(hearing, seeing, audio_requests, video_requests):
    """Its processor would drop the clip without a word, and the rows would say that it was heard."""
    with pytest.raises(InputError, match="takes no audio"):
        results_for(seeing, audio_requests, GREEDY)
    with pytest.raises(InputError, match="takes no video"):
        results_for(hearing, video_requests, GREEDY)


def test_a_server_gives_the_text_of_the_engine_that_it_serves_for_audio(hearing, audio_requests):
    expected = said(hearing, audio_requests)
    assert len({text for (text,) in expected}) > 1, "a model that says the same of every clip proves nothing"
    with OpenAIServer(model_answer(hearing)) as server:
        client = OpenAIEngine("tiny", server.base_url, concurrency=2)
        assert said(client, audio_requests) == expected
    # The batch above was padded; the server answers one by one: padding changes nothing either.
    assert sorted(ask.text for ask in server.asked) == [request.text for request in audio_requests]


def test_a_server_gives_the_text_of_the_engine_that_it_serves_for_video(seeing, video_requests):
    expected = said(seeing, video_requests)
    assert len({text for (text,) in expected}) > 1
    with OpenAIServer(model_answer(seeing)) as server:
        assert said(OpenAIEngine("tiny", server.base_url, concurrency=1), video_requests) == expected
    for ask, request in zip(sorted(server.asked, key=lambda ask: ask.text), video_requests, strict=True):
        assert ask.audio is None
        assert ask.video.fps == request.video.metadata()["fps"]
        np.testing.assert_array_equal(ask.video.pixels, request.video.pixels, err_msg="frames must travel without loss")


def test_a_server_hears_exactly_the_16_bit_samples(audio_requests):
    with OpenAIServer(lambda ask: ["yes"]) as server:
        result = results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:1], Sampling(1, 0.5, 7, 3))
    (ask,) = server.asked
    np.testing.assert_array_equal(ask.audio, audio_requests[0].audio)
    assert (ask.model, ask.text, ask.n, ask.temperature, ask.max_tokens) == ("tiny", audio_requests[0].text, 1, 0.5, 7)
    assert (result[0].key, result[0].prompt) == ("a0", audio_requests[0].text)


def test_every_request_has_a_seed_of_its_own_that_a_rerun_repeats(audio_requests):
    with OpenAIServer(lambda ask: ["yes", "no"]) as server:
        engine = OpenAIEngine("tiny", server.base_url, 1)
        for requests in (audio_requests[:2], audio_requests[1:2]):
            results_for(engine, requests, SAMPLED)
    text_of = {request.text: request.key for request in audio_requests}
    seeds = sorted((text_of[ask.text], ask.seed) for ask in server.asked)
    assert [key for key, _ in seeds] == ["a0", "a1", "a1"]
    assert seeds[0][1] != seeds[1][1] == seeds[2][1]


@pytest.mark.parametrize("over_http", [False, True])
def test_n_completions_are_drawn_for_each_request(hearing, audio_requests, over_http):
    with OpenAIServer(model_answer(hearing)) as server:
        engine = OpenAIEngine("tiny", server.base_url, 2) if over_http else hearing
        results = results_for(engine, audio_requests[:2], replace(SAMPLED, n=3))
    assert [result.key for result in results] == ["a0", "a1"]
    for result in results:
        assert len({completion.text for completion in result.completions}) == 3, "random weights draw three different texts"


@contextmanager
def wanting_to_say(engine: TransformersEngine, token_id: int, request: ChatRequest) -> Iterator[None]:
    """Give the model an `lm_head` under which its first word after this request is `token_id`."""
    import torch

    hidden = []
    hook = engine.model.lm_head.register_forward_hook(lambda _, inputs, __: hidden.append(inputs[0][0, -1].clone()))
    results_for(engine, [request], replace(GREEDY, max_tokens=1))
    hook.remove()
    weight = engine.model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[token_id] = 100 * hidden[0]
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize("over_http", [False, True])
def test_a_text_that_reaches_the_limit_says_so(hearing, audio_requests, over_http):
    request, end_of_turn = audio_requests[0], hearing.processor.tokenizer.eos_token_id
    with OpenAIServer(model_answer(hearing)) as server:
        engine = OpenAIEngine("tiny", server.base_url, 2) if over_http else hearing
        cut = results_for(engine, [request], GREEDY)[0].completions[0]
        with wanting_to_say(hearing, end_of_turn, request):
            ended = results_for(engine, [request], GREEDY)[0].completions[0]
    assert (cut.finish_reason, ended.finish_reason) == ("length", "stop")
    assert cut.text != ""
    assert ended.text == "", "special tokens are no part of the text"


def test_reasoning_that_the_template_opened_is_given_back_whole(monkeypatch, hearing, audio_requests):
    """As `openai_replies` does: the completion begins after the <think> that ends the prompt."""
    (plain,) = results_for(hearing, audio_requests[:1], GREEDY)
    template = hearing.processor.chat_template.rstrip() + "{{- '<think>\n' }}"
    monkeypatch.setattr(hearing.processor, "chat_template", template)
    (opened,) = results_for(hearing, audio_requests[:1], GREEDY)
    assert opened.prompt == plain.prompt + "<think>\n"
    assert opened.completions[0].text.startswith("<think>") and not plain.completions[0].text.startswith("<think>")


def test_the_model_hears(hearing, audio_requests):
    first, second = audio_requests[:2]
    ids, logits = forward_of(hearing, first)
    _, repeated = forward_of(hearing, first)
    _, other_sound = forward_of(hearing, replace(first, audio=second.audio))
    np.testing.assert_array_equal(logits, repeated)
    assert np.abs(logits - other_sound).max() > 1e-3, "the output has to change with the sound"
    tokens = "".join("x" if i == hearing.model.config.audio_token_id else "." for i in ids)
    assert tokens.strip(".") == "x" * 25, "exactly one clip: 2 s are 25 tokens in a row"


def test_the_model_sees(seeing, video_requests):
    first, second = video_requests[:2]
    ids, logits = forward_of(seeing, first)
    _, other_video = forward_of(seeing, replace(first, video=second.video))
    assert np.abs(logits - other_video).max() > 1e-3
    # Six frames are three pairs; 56 x 56 pixels are 4 x 4 patches, merged by 2 x 2.
    tokens = "".join("x" if i == seeing.model.config.video_token_id else "." for i in ids)
    assert tokens.strip(".") == "x" * 12


def test_pairs_of_frames_stand_at_different_times(seeing, video_requests):
    """At 3 frames per second, and further apart when the same frames were sampled more slowly."""
    first, positions = video_requests[0], []

    def keep(_, __, inputs, ___):
        is_video = inputs["input_ids"][0] == seeing.model.config.video_token_id
        positions.append(inputs["position_ids"][-3, 0][is_video].unique())  # the last three are time, height, width

    hook = seeing.model.register_forward_hook(keep, with_kwargs=True)
    for fps in (3.0, 0.5):
        results_for(seeing, [replace(first, video=Frames(first.video.pixels, fps))], replace(GREEDY, max_tokens=1))
    hook.remove()
    fast, slow = ((times - times[0]).tolist() for times in positions)
    assert len(fast) == 3, "three pairs of frames, three times"
    assert slow == [4 * time for time in fast]


@pytest.mark.parametrize(
    ("name", "kind"), [("audio_token_id", "audio"), ("video_token_id", "video"), ("image_token_id", "video")]
)
def test_placeholders_are_never_sampled(hearing, seeing, audio_requests, video_requests, name, kind):
    engine, request = (hearing, audio_requests[0]) if kind == "audio" else (seeing, video_requests[0])
    placeholder = getattr(engine.model.config, name)
    with wanting_to_say(engine, placeholder, request):
        _, logits = forward_of(engine, request)
        assert logits.argmax() == placeholder, "left alone, the model would say it"
        logits[placeholder] = -np.inf
        runner_up = engine.processor.tokenizer.decode([int(logits.argmax())])
        assert runner_up
        assert said(engine, [request], replace(GREEDY, max_tokens=1)) == [[runner_up]]


def test_an_engine_is_chosen_by_the_base_url(student_checkpoint):
    assert isinstance(make_engine(EngineFlags(model="tiny", base_url="http://127.0.0.1:1/v1", sampling=SAMPLED)), OpenAIEngine)
    engine = make_engine(EngineFlags(model=str(student_checkpoint), batch_size=5, sampling=SAMPLED))
    assert (engine.requests_per_call, engine.window_s) == (2, 2.0)
    assert len(engine.revision) == 16
    with pytest.raises(InputError, match=r"nowhere cannot be loaded .*; expected a model folder or a Hub model id"):
        make_engine(EngineFlags(model="nowhere", batch_size=4, sampling=SAMPLED))


@pytest.mark.parametrize("faults", [[429, 429], [500], [429, 503, DROP], [ONE_CHOICE, 504]])
def test_passing_failures_are_retried(audio_requests, faults):
    with OpenAIServer(lambda ask: ["yes", "no"], faults) as server:
        engine = OpenAIEngine("tiny", server.base_url, 1)
        assert said(engine, audio_requests[:1], SAMPLED) == [["yes", "no"]]
    assert server.statuses == [*faults, 200]
    assert engine.num_retries == len(faults)


@pytest.fixture
def impatient(monkeypatch):
    """No waits between tries, and no outage is waited for."""
    monkeypatch.setattr(openai_protocol, "FIRST_DELAY_S", 0.0)
    for name in ("PATIENCE_S", "FIRST_PATIENCE_S"):
        monkeypatch.setattr(openai_engine, name, 0.0)


def test_a_server_that_is_not_there_is_named(impatient, audio_requests):
    with OpenAIServer(lambda ask: ["yes"]) as server:
        pass
    with pytest.raises(InputError, match=f"no answer from {server.base_url}: is the server running"):
        results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:1], GREEDY)


def test_a_server_that_hangs_is_named_with_the_time(impatient, audio_requests):
    gone = threading.Event()
    with OpenAIServer(lambda ask: gone.wait(60) and [], is_up=False) as server:
        engine = OpenAIEngine("tiny", server.base_url, 1, timeout_s=0.5)
        with pytest.raises(InputError, match=f"no answer from {server.base_url} within 0.5 s; finished requests are kept"):
            results_for(engine, audio_requests[:1], GREEDY)
        gone.set()


def test_a_server_that_is_always_busy_is_quoted(impatient, audio_requests):
    with (
        OpenAIServer(lambda ask: ["yes"], itertools.repeat(503), is_up=False) as server,
        pytest.raises(InputError, match=r"answered 503: .*fault 503.*; finished requests are kept, rerun to continue"),
    ):
        results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:1], GREEDY)
    assert len(server.statuses) == 1


@pytest.mark.parametrize("key", [None, "secret"])
@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "OPENAI_API_KEY"), (404, r"check --base_url \(it ends in /v1\) and the name of the model"), (402, "")],
)
def test_what_waiting_cannot_mend_stops_the_run_at_once(monkeypatch, audio_requests, status, remedy, key):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    if remedy == "OPENAI_API_KEY":
        remedy = "check OPENAI_API_KEY" if key else "OPENAI_API_KEY is not set: set it"
    with OpenAIServer(lambda ask: ["yes"], itertools.repeat(status)) as server:
        expected = (
            f"{server.base_url} answered {status}: .*fault {status}.*{remedy}.*; finished requests are kept, rerun to continue"
        )
        with pytest.raises(InputError, match=expected) as stopped:
            results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests, GREEDY)
    assert server.statuses == [status], "one request is enough to know"
    assert "\n" not in str(stopped.value) and "secret" not in str(stopped.value)


@pytest.mark.parametrize(
    ("fault", "outcome", "expected"),
    [
        (500, "server_error", "answered 500: .*fault 500"),
        (ONE_CHOICE, "bad_response", "1 choices for n=2; it needs to support n"),
    ],
)
def test_a_request_at_which_the_server_fails_time_after_time_is_an_outcome(impatient, audio_requests, fault, outcome, expected):
    with OpenAIServer(lambda ask: ["yes", "no"], [fault] * openai_engine.TRIES) as server:
        results = results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:2], SAMPLED)
    failed, answered = sorted(results, key=lambda result: result.outcome is None)
    assert (failed.outcome, failed.completions, answered.outcome) == (outcome, [], None)
    assert re.search(expected, failed.detail)
    assert len(server.statuses) == openai_engine.TRIES + 1


def choice(**changed) -> dict:
    return {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"} | changed


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON .*<html>"),
        (b'{"choices": [', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"null", "no choices"),
        (b'{"error": "later"}', "no choices: .*later"),
        (b'{"choices": null}', "no choices"),
        (b'{"choices": []}', "0 choices for n=1"),
        (b'{"choices": [null]}', "a choice without a text"),
        (json.dumps({"choices": [choice(message=None)]}).encode(), "a choice without a text"),
        (json.dumps({"choices": [choice(message={"content": 1})]}).encode(), "a choice without a text"),
    ],
)
def test_a_body_that_is_no_chat_completion_is_told(body, expected):
    with pytest.raises(RequestFailure, match=expected):
        read_reply(body, 1, "URL")


def test_refusals_and_counts_of_tokens_are_read():
    answers = [
        choice(),
        choice(message={"content": None, "refusal": "No."}),
        choice(message={}, finish_reason="content_filter"),
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    read, counted = read_reply(json.dumps({"choices": answers, "usage": usage}).encode(), 3, "URL")
    assert [(each.text, each.finish_reason) for each in read] == [("yes", "stop"), ("No.", "refusal"), ("", "content_filter")]
    assert counted == Usage(9, 3, 8)
    for unusable in (None, [], {"prompt_tokens": "9"}, {"prompt_tokens": 9, "completion_tokens": None}):
        assert read_reply(json.dumps({"choices": [choice()], "usage": unusable}).encode(), 1, "URL")[1] is None
    uncached = {"choices": [choice()], "usage": usage | {"prompt_tokens_details": None}}
    assert read_reply(json.dumps(uncached).encode(), 1, "URL")[1] == Usage(9, 3, None)


def test_requests_are_spread_over_replicas_and_one_that_is_gone_is_left_alone(audio_requests):
    requests = [replace(audio_requests[0], key=str(i)) for i in range(40)]
    answer = lambda ask: time.sleep(0.02) or ["yes"]  # noqa: E731
    with OpenAIServer(answer) as first, OpenAIServer(answer) as second:
        results_for(OpenAIEngine("tiny", [first.base_url, second.base_url], 4), requests, GREEDY)
        assert min(len(first.asked), len(second.asked)) > 10, "both work"
        with OpenAIServer(answer, itertools.repeat(500)) as broken:
            engine = OpenAIEngine("tiny", [broken.base_url, second.base_url], 4)
            assert {result.outcome for result in results_for(engine, requests, GREEDY)} == {None}
    # Three failures in a row, up to three more that were under way, and now and then a try.
    assert len(broken.statuses) <= 8


def test_clips_are_decoded_when_they_can_be_sent_and_no_earlier(tmp_path, audio_requests):
    """Backpressure: a server that is slow, or a disk, leaves at most 2 x concurrency clips in memory."""
    concurrency, ahead = 3, []

    def build(key):
        ahead.append(int(key) + 1 - len(server.asked))
        return replace(audio_requests[0], key=key)

    with OpenAIServer(lambda ask: time.sleep(0.02) or ["yes", "no"]) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency)
        journal = Journal(tmp_path / "journal.jsonl")
        run_requests(engine, [str(i) for i in range(60)], build, SAMPLED, journal, "test")
        journal.close()
    assert len(ahead) == 60
    assert max(ahead) <= 2 * concurrency, "built, and not yet with the server"
    assert server.most_at_once <= concurrency


def test_no_more_than_the_concurrency_is_answered_and_not_journaled(audio_requests):
    """While the disk is slow nothing more is sent: a kill would have all of it paid twice."""
    with OpenAIServer(lambda ask: ["yes", "no"]) as server:
        engine = OpenAIEngine("tiny", server.base_url, 2)
        results = engine.complete([replace(audio_requests[0], key=str(i)) for i in range(20)], SAMPLED)
        num_journaled = 0
        for part in results:
            time.sleep(0.1)  # the journal's turn; nothing of this part counts as kept before the next is asked for
            assert len(server.asked) - num_journaled <= 2
            num_journaled += len(part)
    assert num_journaled == 20


def test_requests_about_one_clip_follow_each_other_on_one_replica(tmp_path, audio_requests):
    """So that the server finds the clip in its prefix cache."""
    texts = {f"{clip}/{i}": f"clip {clip} question {i}" for clip in range(6) for i in range(4)}
    answer = lambda ask: time.sleep(0.02) or ["yes", "no"]  # noqa: E731
    journal = Journal(tmp_path / "journal.jsonl")
    with OpenAIServer(answer) as first, OpenAIServer(answer) as second:
        engine = OpenAIEngine("tiny", [first.base_url, second.base_url], 4)
        build = lambda key: replace(audio_requests[0], key=key, text=texts[key])  # noqa: E731
        run_requests(engine, list(texts), build, SAMPLED, journal, "test", clip_of=lambda key: key.split("/")[0])
        asked = [[ask.text.split() for ask in server.asked] for server in (first, second)]
    journal.close()
    for clip in "012345":
        order = [[question for _, asked_clip, _, question in each if asked_clip == clip] for each in asked]
        assert sorted(order) == [[], ["0", "1", "2", "3"]]


@pytest.mark.parametrize(("n", "asked_for"), [(2, [(1, 1), (2, 8)]), (1, [(1, 8)])])
def test_a_prompt_is_computed_before_its_completions_are_drawn(audio_requests, n, asked_for):
    with OpenAIServer(lambda ask: ["yes"] * ask.n) as server:
        engine = OpenAIEngine("tiny", server.base_url, 1, prime=True)
        assert said(engine, audio_requests[:1], replace(SAMPLED, n=n)) == [["yes"] * n]
    assert [(ask.n, ask.max_tokens) for ask in server.asked] == asked_for
    assert {(ask.text, ask.seed) for ask in server.asked} == {(audio_requests[0].text, server.asked[0].seed)}


def test_progress_tells_tokens_and_how_much_of_the_prompts_was_cached(tmp_path, capsys):
    class Counting:
        num_retries, window_s, requests_per_call, revision = 3, None, 1, ""

        def stream(self, groups, build, sampling):
            for (key,) in groups:
                yield [ChatResult(key, "", [Completion("yes", "stop")], usage=Usage(100, 10, 75))]

    assert isinstance(Counting(), StreamingEngine)
    journal = Journal(tmp_path / "journal.jsonl")
    run_requests(Counting(), ["a", "b"], lambda key: ChatRequest(key, ""), SAMPLED, journal, "test")
    journal.close()
    expected = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert re.search(r"test: 100%.* 2/2 .*row/s.*tokens/s=\d+, cached=75%, retries=3", expected)
    assert journal["a"]["usage"] == {"prompt_tokens": 100, "completion_tokens": 10, "cached_tokens": 75}


class Interrupted(Exception):
    pass


class StopsAtCall:
    """The engine that it is given, until a kill in the middle of its k-th call."""

    def __init__(self, engine: TransformersEngine, call: int | None = None):
        self._engine, self._stop_at, self.calls = engine, call, []
        self.requests_per_call, self.window_s, self.revision = engine.requests_per_call, engine.window_s, engine.revision

    def complete(self, requests, sampling):
        self.calls.append([request.key for request in requests])
        results = results_for(self._engine, requests, sampling)
        if len(self.calls) == self._stop_at:
            raise Interrupted
        yield results


def journal_of(path, engine, requests: dict[str, ChatRequest], build=None) -> bytes:
    """What `run_requests` leaves on the disk, whether it ended or was interrupted."""
    journal = Journal(path)
    try:
        run_requests(engine, list(requests), build or requests.__getitem__, SAMPLED, journal, "test")
    finally:
        journal.close()
    return path.read_bytes()


@pytest.fixture
def by_key(audio_requests) -> dict[str, ChatRequest]:
    return {request.key: replace(request, note={"heard_s": 2.0}) for request in audio_requests}


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, hearing, by_key):
    whole = journal_of(tmp_path / "whole.jsonl", hearing, by_key)
    assert whole.count(b"\n") == 6
    path = tmp_path / "interrupted.jsonl"
    with pytest.raises(Interrupted):
        journal_of(path, StopsAtCall(hearing, call=2), by_key)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2]), "the first call was journaled, no more"
    continued = StopsAtCall(hearing)
    assert journal_of(path, continued, by_key) == whole
    assert continued.calls == [["a2", "a3"], ["a4", "a5"]], "what was finished is not asked again"


def test_a_run_interrupted_while_a_request_is_built_continues_to_the_same_bytes(tmp_path, hearing, by_key):
    def build(key):
        if key == "a3":
            raise Interrupted
        return by_key[key]

    whole = journal_of(tmp_path / "whole.jsonl", hearing, by_key)
    with pytest.raises(Interrupted):
        journal_of(tmp_path / "interrupted.jsonl", hearing, by_key, build)
    assert journal_of(tmp_path / "interrupted.jsonl", hearing, by_key) == whole


def test_a_call_whose_journaling_was_torn_is_repeated_alike(tmp_path, hearing, by_key):
    path = tmp_path / "journal.jsonl"
    journal_of(path, hearing, by_key)
    before = Journal(path)
    before.close()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4])[:-5])
    journal_of(path, hearing, by_key)
    after = Journal(path)
    after.close()
    assert after.entries == before.entries


def test_other_requests_survive_a_clip_that_cannot_be_read(tmp_path, hearing, by_key):
    def build(key):
        if key in ("a1", "a4", "a5"):
            raise MediaError("corrupt_media", f"{key} is broken")
        return by_key[key]

    engine = StopsAtCall(hearing)
    journal_of(tmp_path / "journal.jsonl", engine, by_key, build)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.close()
    assert set(journal) == set(by_key)
    assert journal["a1"] == {"outcome": "corrupt_media", "detail": "a1 is broken"}
    assert len(journal["a0"]["completions"]) == 2
    assert journal["a0"]["heard_s"] == 2.0
    assert engine.calls == [["a0"], ["a2", "a3"]], "a call without any readable clip is not made"


def test_what_a_server_answered_before_it_failed_is_kept(tmp_path, by_key):
    path = tmp_path / "journal.jsonl"
    with OpenAIServer(lambda ask: ["yes", "no"], [None] * 5 + [401]) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        with pytest.raises(InputError, match="answered 401"):
            journal_of(path, engine, by_key)
        assert path.read_bytes().count(b"\n") == 5
        journal_of(path, engine, by_key)
    assert sorted(ask.text for ask in server.asked) == [request.text for request in by_key.values()], "nothing is asked twice"


def test_a_request_that_the_server_refuses_is_an_outcome_and_holds_nobody_up(tmp_path, by_key):
    path, keys = tmp_path / "journal.jsonl", list(by_key)
    with OpenAIServer(lambda ask: ["yes", "no"], [None, 400]) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        journal_of(path, engine, by_key)
        journal_of(path, engine, by_key)
    assert len(server.statuses) == len(keys), "nothing is asked twice"
    journal = Journal(path)
    journal.close()
    (refused,) = [entry for entry in journal.entries.values() if "completions" not in entry]
    assert refused["outcome"] == "refused" and "fault 400" in refused["detail"]
    assert set(journal) == set(keys)


def test_a_server_that_refuses_everything_stops_the_stage(tmp_path, by_key):
    path = tmp_path / "journal.jsonl"
    with OpenAIServer(lambda ask: ["yes", "no"], itertools.repeat(422)) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        with pytest.raises(InputError, match=r"the server answers no request: .*422"):
            journal_of(path, engine, by_key)
    assert path.read_bytes() == b""


def test_a_few_clips_with_many_refused_traces_do_not_stop_the_run(tmp_path):
    """Three clips that the server does not take, eight traces each, one after the other: 24 refusals in a row are three."""
    requests = {f"{clip}-{trace}": ChatRequest(f"{clip}-{trace}", clip) for clip in "abcde" for trace in range(8)}
    refusals = [None] * 8 + [400] * 24 + [None] * 8
    sampling, path = Sampling(1, 0.0, 8, 0), tmp_path / "journal.jsonl"
    with OpenAIServer(lambda ask: ["yes"], refusals) as server, closing(Journal(path)) as journal:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        run_requests(engine, list(requests), requests.__getitem__, sampling, journal, "traces", lambda key: key[0])
        outcomes = [entry.get("outcome") for entry in journal.entries.values()]
    assert outcomes.count("refused") == 24 and outcomes.count(None) == 16


def test_what_is_in_flight_when_a_request_fails_is_kept(tmp_path, by_key):
    """All four are with the server when the last of them fails: the others were paid for."""
    path, failing = tmp_path / "journal.jsonl", threading.Event()

    def faults():
        yield from [None, None, None]
        failing.set()
        yield 401

    def answer(ask):
        assert failing.wait(timeout=60)
        time.sleep(0.3)  # the 401 is there first
        return ["yes", "no"]

    with OpenAIServer(answer, faults()) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=4)
        with pytest.raises(InputError, match="answered 401"):
            journal_of(path, engine, dict(list(by_key.items())[:4]))
    assert path.read_bytes().count(b"\n") == 3


def test_refusals_before_the_first_answer_lose_nothing_that_is_in_flight(tmp_path):
    """Two in three are refused at once while real answers take longer: more refusals in a row than are taken for an answer."""
    keys = [str(i) for i in range(120)]

    def answer(ask):
        time.sleep(0.5)
        return ["yes"]

    def status_of(text: str) -> int | None:
        return None if int(text) % 3 == 0 else 400

    with OpenAIServer(answer, fault_of=status_of) as server:
        journal = Journal(tmp_path / "journal.jsonl")
        engine = OpenAIEngine("tiny", server.base_url, concurrency=16)
        run_requests(engine, keys, lambda key: ChatRequest(key, key), GREEDY, journal, "requests")
        journal.close()
    assert sorted(journal.entries) == sorted(keys)
    assert {key for key, entry in journal.entries.items() if "completions" in entry} == {str(i) for i in range(0, 120, 3)}


def test_after_a_burst_of_refusals_as_many_are_asked_at_once_as_before(tmp_path):
    keys, at_once, most, lock = [str(i) for i in range(140)], 0, 0, threading.Lock()

    def answer(ask):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once if int(ask.text) > 40 else 0)
        time.sleep(1.0 if ask.text == "0" else 0.1)  # the burst is over before the first answer
        with lock:
            at_once -= 1
        return ["yes"]

    with OpenAIServer(answer, fault_of=lambda text: 400 if 0 < int(text) <= 40 else None) as server:
        journal = Journal(tmp_path / "journal.jsonl")
        engine = OpenAIEngine("tiny", server.base_url, concurrency=16)
        run_requests(engine, keys, lambda key: ChatRequest(key, key), GREEDY, journal, "requests")
        journal.close()
    assert sorted(journal.entries) == sorted(keys)
    assert most >= 12


def test_a_request_that_alone_gets_504_does_not_stop_the_others_for_ever(impatient, tmp_path):
    with OpenAIServer(lambda ask: ["yes"], fault_of=lambda text: 504 if text == "3" else None) as server:
        journal = Journal(tmp_path / "journal.jsonl")
        engine = OpenAIEngine("tiny", server.base_url, concurrency=2)
        keys = [str(i) for i in range(6)]
        run_requests(engine, keys, lambda key: ChatRequest(key, key), GREEDY, journal, "requests")
        journal.close()
    assert sorted(journal.entries) == keys
    assert journal["3"]["outcome"] == "server_error"
    assert sum(ask == "3" for ask in server.faulted) == openai_engine.TRIES


def test_a_key_with_a_line_break_is_refused_and_not_quoted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET\r\nmore")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds characters that no key has") as refused:
        OpenAIEngine("tiny", "http://127.0.0.1:1/v1", 1)
    assert "SECRET" not in str(refused.value)

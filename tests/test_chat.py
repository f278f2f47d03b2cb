"""Both engines answer alike, hear what they are given, survive failures, and continue after an interruption."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from sightsound.chat import ChatRequest, OpenAIEngine, Sampling, TransformersEngine, make_engine, run_requests
from sightsound.cli import InputError
from sightsound.journal import Journal
from sightsound.media import Frames, MediaError, decode_audio, load_frames
from tests.support.openai_server import DROP, ONE_CHOICE, OpenAIServer, model_answer


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
SAMPLED = Sampling(n=2, temperature=1.0, max_tokens=8, seed=0)


def results_for(engine, requests, sampling):
    """All results, in the order of the requests; an engine yields them as they are finished."""
    results = {result.key: result for part in engine.complete(requests, sampling) for result in part}
    return [results[request.key] for request in requests]


@pytest.fixture(scope="module")
def hearing(student_checkpoint) -> TransformersEngine:
    return TransformersEngine(str(student_checkpoint), batch_size=4, sampling=SAMPLED)


@pytest.fixture(scope="module")
def seeing(teacher_checkpoint) -> TransformersEngine:
    return TransformersEngine(str(teacher_checkpoint), batch_size=4, sampling=SAMPLED)


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


def test_an_adapter_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter; give the merged model"):
        TransformersEngine(str(tmp_path), batch_size=4, sampling=GREEDY)


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
    for ask, request in zip(server.asked, video_requests, strict=True):
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
    first, second, again = (ask.seed for ask in server.asked)
    assert first != second == again


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
    assert isinstance(make_engine("tiny", "http://127.0.0.1:1/v1", 4, 2, SAMPLED), OpenAIEngine)
    engine = make_engine(str(student_checkpoint), None, 5, 2, SAMPLED)
    assert (engine.requests_per_call, engine.window_s) == (2, 2.0)
    assert len(engine.revision) == 16
    with pytest.raises(InputError, match=r"nowhere cannot be loaded .*; expected a model folder or a Hub model id"):
        make_engine("nowhere", None, 4, 2, SAMPLED)


@pytest.mark.parametrize("faults", [[429, 429], [500], [429, 503, DROP]])
def test_passing_failures_are_retried(audio_requests, faults):
    with OpenAIServer(lambda ask: ["yes"], faults) as server:
        assert said(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:1]) == [["yes"]]
    assert server.statuses == [*faults, 200]


def test_a_server_that_stays_down_is_named(audio_requests):
    with OpenAIServer(lambda ask: ["yes"]) as server:
        pass
    engine = OpenAIEngine("tiny", server.base_url, 1)
    engine._client.max_retries = 0  # the client's waits between its five retries add up to 13 s
    with pytest.raises(InputError, match=f"no answer from {server.base_url}/?: is the server running"):
        results_for(engine, audio_requests[:1], GREEDY)


@pytest.mark.parametrize(("status", "num_tries"), [(401, 1), (500, 6)])
def test_a_server_that_keeps_refusing_is_quoted(audio_requests, status, num_tries):
    with OpenAIServer(lambda ask: ["yes"], itertools.repeat(status)) as server:
        told = f"{server.base_url}/? answered {status}: .*fault {status}.*; finished requests are kept, rerun to continue"
        with pytest.raises(InputError, match=told):
            results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:1], GREEDY)
    assert len(server.statuses) == num_tries


def test_a_server_that_ignores_n_is_refused(audio_requests):
    with (
        OpenAIServer(lambda ask: ["yes"] * ask.n, [ONE_CHOICE]) as server,
        pytest.raises(InputError, match="tiny returned 1 completions for n=2; it needs to support n"),
    ):
        results_for(OpenAIEngine("tiny", server.base_url, 1), audio_requests[:1], SAMPLED)


class Interrupted(Exception):
    pass


class StopsAtCall:
    """The engine that it is given, until a kill in the middle of its k-th call."""

    def __init__(self, engine: TransformersEngine, call: int | None = None):
        self._engine, self._stop_at, self.calls = engine, call, []
        self.requests_per_call, self.window_s, self.revision = engine.requests_per_call, engine.window_s, engine.revision
        self.whole_calls = True

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
    # The second request of the second call fails: the first one of that call is kept too, and nothing is asked twice.
    with OpenAIServer(lambda ask: ["yes", "no"], [None] * 5 + [401]) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        assert engine.requests_per_call == 4
        with pytest.raises(InputError, match="answered 401"):
            journal_of(path, engine, by_key)
        assert path.read_bytes().count(b"\n") == 5
        journal_of(path, engine, by_key)
    assert [ask.text for ask in server.asked] == [request.text for request in by_key.values()]


def test_a_request_that_the_server_refuses_is_an_outcome_and_holds_nobody_up(tmp_path, by_key):
    path, keys = tmp_path / "journal.jsonl", list(by_key)
    with OpenAIServer(lambda ask: ["yes", "no"], [None, 400]) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        journal_of(path, engine, by_key)
        journal_of(path, engine, by_key)
    assert len(server.statuses) == len(keys), "nothing is asked twice"
    journal = Journal(path)
    journal.close()
    assert journal[keys[1]]["outcome"] == "refused" and "fault 400" in journal[keys[1]]["detail"]
    assert all("completions" in journal[key] for key in keys if key != keys[1])


def test_a_server_that_refuses_everything_stops_the_stage(tmp_path, by_key):
    path = tmp_path / "journal.jsonl"
    with OpenAIServer(lambda ask: ["yes", "no"], itertools.repeat(422)) as server:
        engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
        with pytest.raises(InputError, match=r"the server refuses every request: .*422"):
            journal_of(path, engine, by_key)
    assert path.read_bytes() == b""


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

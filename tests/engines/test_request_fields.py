"""Servers that want other requests get them, and the rows say so."""

import base64
import io
import json

import numpy as np
import pytest

from dataset_builders import traces
from dataset_builders.traces import TracesArguments, settings_of
from dataset_builders.verdicts import VerdictsArguments
from evaluation import run as generate
from evaluation.running.arguments import RunArguments
from sightsound.cli import InputError, parse_arguments
from sightsound.data.frames import Frames
from sightsound.engines import openai_protocol
from sightsound.engines.base import ChatRequest, ChatResult, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.request_fields import IMAGES, RequestFieldArguments, RequestOptions, options_of
from tests.support.house_server import HouseServer, chat, choice, text_of
from tests.support.tiny import read_rows


SAMPLED = Sampling(n=3, temperature=1.0, max_tokens=12, seed=0)
GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
VIDEO = Frames(np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), np.uint8), 2.0)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(openai_protocol, "FIRST_DELAY_S", 0.0)


def ask(server: HouseServer, options: RequestOptions, sampling: Sampling, *requests: ChatRequest) -> list[ChatResult]:
    asked = OpenAIEngine("tiny", server.base_url, 1, options=options)
    results = [result for part in asked.complete(requests, sampling) for result in part]
    return sorted(results, key=lambda result: result.key)


def options(*flags: str, base_url: str | None = "http://127.0.0.1:1/v1") -> RequestOptions:
    return options_of(
        parse_arguments(RequestFieldArguments, None, list(flags)), base_url, ("temperature", "max_tokens", "seed")
    )


def test_values_are_json_where_they_can_be():
    given = ["a=1", "b=true", "c=null", 'd={"e": [1]}', "f=low", 'g="1"', "h=", "i=1=2", "j=NaN", "k={"]
    fields = {"a": 1, "b": True, "c": None, "d": {"e": [1]}, "f": "low", "g": "1", "h": "", "i": "1=2", "j": "NaN", "k": "{"}
    assert options("--request_field", *given).fields == fields
    assert options("--request_field", "a=1", "--request_field", "b=2", "--omit_field", "c", "--omit_field", "d", "c") == (
        RequestOptions({"a": 1, "b": 2}, ("c", "d"))
    )


@pytest.mark.parametrize(
    ("flags", "output"),
    [
        (["--request_field", "max_completion_tokens"], "expected NAME=VALUE, such as max_completion_tokens=512"),
        (["--request_field", "=1"], "expected NAME=VALUE"),
        (["--request_field", "n=2"], "set by this script"),
        (["--request_field", "stream=true"], "set by this script"),
        (["--request_field", "temperature=0"], "has a flag for it, --temperature"),
        (["--request_field", "a=1", "a=2"], "--request_field a is given twice"),
        (["--omit_field", "model"], "every request needs it"),
        (["--request_field", "a=1", "--omit_field", "a"], "--request_field sets it"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_refused(flags, output):
    with pytest.raises(InputError, match=output) as refused:
        options(*flags)
    assert "\n" not in str(refused.value)


def test_flags_without_a_server_are_refused():
    for flags in (["--request_field", "a=1"], ["--omit_field", "seed"]):
        with pytest.raises(InputError, match="are for a server"):
            options(*flags, base_url=None)
    assert options(base_url=None) == RequestOptions()
    with pytest.raises(InputError, match="are for a server"):
        options_of(RequestFieldArguments(), None, (), IMAGES)


def test_a_field_that_no_request_has_cannot_be_omitted():
    with HouseServer(lambda _: chat("yes")) as server, pytest.raises(InputError, match="did you mean max_tokens"):
        ask(server, options("--omit_field", "max_token"), GREEDY, ChatRequest("a", "a"))
    assert server.bodies == []


def test_fields_are_added_replaced_and_left_out():
    given = options("--request_field", "max_completion_tokens=99", "reasoning_effort=low", "--omit_field", "max_tokens", "seed")
    with HouseServer(lambda _: chat("yes")) as server:
        (result,) = ask(server, given, GREEDY, ChatRequest("a", "a"))
    (body,) = server.bodies
    assert (body["max_completion_tokens"], body["reasoning_effort"]) == (99, "low")
    assert not {"max_tokens", "seed"} & body.keys() and {"model", "messages", "n", "temperature"} <= body.keys()
    assert result.outcome is None
    engine = OpenAIEngine("tiny", server.base_url, 1, options=given)
    output = 'max_completion_tokens=99, reasoning_effort="low", no max_tokens, no seed'
    assert engine.revision == f"tiny at its server ({output})"


def test_an_answer_of_as_many_tokens_as_the_fields_allow_is_read():
    long = "word " * 400_000
    for flags in (["--request_field", "max_completion_tokens=500000"], []):
        with HouseServer(lambda _: chat(long)) as server:
            (result,) = ask(server, options(*flags, "--omit_field", "max_tokens"), GREEDY, ChatRequest("a", "a"))
        assert result.completions[0].text == long


def test_seeds_have_31_bits_and_stay_apart():
    with HouseServer(lambda _: chat("yes")) as server:
        ask(server, RequestOptions(), GREEDY, *(ChatRequest(str(i), str(i)) for i in range(64)))
    seeds = {body["seed"] for body in server.bodies}
    assert len(seeds) == 64 and min(seeds) >= 0 and max(seeds) < 2**31


def test_without_n_each_completion_is_a_request_with_a_seed_of_its_own():
    texts = iter("abcdef")

    def reply(body):
        assert "n" not in body
        return {"choices": [choice(content=next(texts))], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}

    with HouseServer(reply) as server:
        results = ask(server, options("--omit_field", "n"), SAMPLED, ChatRequest("q", "q"), ChatRequest("r", "r"))
    assert sorted("".join(c.text for c in result.completions) for result in results) == ["abc", "def"]
    assert [(result.usage.prompt_tokens, result.usage.completion_tokens) for result in results] == [(15, 6)] * 2
    assert len({body["seed"] for body in server.bodies}) == 6


def test_without_n_a_request_that_fails_is_the_outcome_of_all():
    count = iter(range(99))

    def reply(body):
        return (400, {"error": {"message": "too long"}}) if text_of(body) == "q" and next(count) == 1 else chat("yes")

    with HouseServer(reply) as server:
        q, r = ask(server, options("--omit_field", "n"), SAMPLED, ChatRequest("q", "q"), ChatRequest("r", "r"))
    assert (q.key, q.outcome, q.completions, len(r.completions)) == ("q", "refused", [], 3)


def test_without_n_what_was_answered_before_a_429_is_not_paid_again():
    """The second of three completions is refused for a while; then the request is put off, and goes on where it was."""
    answered: list[str] = []

    def reply(body):
        if text_of(body) == "q" and answered.count("q") == 1 and len(server.bodies) < 14:
            return 429, {"error": {"message": "later"}}
        answered.append(text_of(body))
        return chat(str(body["seed"]))

    with HouseServer(reply) as server:
        q, _ = ask(server, options("--omit_field", "n"), SAMPLED, ChatRequest("q", "q"), ChatRequest("r", "r"))
    assert sorted(answered) == ["q"] * 3 + ["r"] * 3
    assert len({completion.text for completion in q.completions}) == 3


def test_a_server_that_gives_one_completion_whatever_n_is_told_with_the_remedy():
    with HouseServer(lambda body: chat("yes")) as server:
        (result,) = ask(server, RequestOptions(), SAMPLED, ChatRequest("q", "q"))
    assert "1 choices for n=3" in result.detail and "--omit_field n makes a request of each completion" in result.detail


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', "--omit_field seed leaves it out"),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'", "--omit_field max_tokens leaves it out"),
        ("`n` must be 1 for this model", "--omit_field n leaves it out"),
        ("Invalid value: 'video_url'. Supported values are: 'text', 'image_url'", "--frames images sends images"),
    ],
)
def test_a_refused_field_is_told_with_the_remedy(message, remedy):
    with HouseServer(lambda _: (400, {"error": {"message": message}})) as server:
        (result,) = ask(server, RequestOptions(), SAMPLED, ChatRequest("q", "q"))
    assert result.outcome == "refused" and result.detail.endswith(remedy)


def test_frames_travel_as_images_without_loss():
    from PIL import Image

    with HouseServer(lambda _: chat("yes")) as server:
        ask(server, RequestOptions(frames=IMAGES), GREEDY, ChatRequest("a", "What is seen?", video=VIDEO))
    (body,) = server.bodies
    *images, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is seen?"} and "media_io_kwargs" not in body
    assert [image["type"] for image in images] == ["image_url"] * 4
    for image, frame in zip(images, VIDEO.pixels, strict=True):
        head, _, data = image["image_url"]["url"].partition(",")
        decoded = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert (head, decoded.format) == ("data:image/png;base64", "PNG")
        np.testing.assert_array_equal(np.asarray(decoded), frame)


def test_frames_are_one_video_unless_asked_otherwise():
    with HouseServer(lambda _: chat("yes")) as server:
        without = RequestOptions(omitted=("media_io_kwargs",))
        ask(server, without, GREEDY, ChatRequest("a", "a", video=VIDEO))
        ask(server, without, GREEDY, ChatRequest("b", "b"))
        ask(server, RequestOptions(), GREEDY, ChatRequest("c", "c", video=VIDEO))
    assert [body["messages"][0]["content"][0]["type"] for body in server.bodies] == ["video_url", "text", "video_url"]
    assert ["media_io_kwargs" in body for body in server.bodies] == [False, False, True]


def test_the_flags_belong_to_the_settings_and_their_order_does_not():
    required = {"dataset": "d", "media_dir": "m", "model": "t", "output_dir": "o", "base_url": ["u"]}

    def settings(**flags):
        return settings_of(TracesArguments(**required, **flags))

    plain = settings()
    for other in ({"request_field": ["a=1"]}, {"omit_field": ["seed"]}, {"frames": IMAGES}):
        assert settings(**other) != plain
    both = settings(request_field=["a=1", "b=2"], omit_field=["n", "seed"])
    assert settings(request_field=["b=2", "a=1"], omit_field=["seed", "n"]) == both


def test_all_scripts_that_ask_servers_have_the_flags():
    flags = ["--base_url", "http://u", "--request_field", "a=1", "--omit_field", "seed", "--output_dir", "o", "--dataset", "d"]
    expected = RequestOptions({"a": 1}, ("seed",))
    assert parse_arguments(VerdictsArguments, None, [*flags, "--traces", "t", "--checker", "c"]).options() == expected
    for arguments, more in ((TracesArguments, ["--media_dir", "m"]), (RunArguments, [])):
        args = parse_arguments(arguments, None, [*flags, "--model", "m", *more, "--frames", "images"])
        assert args.options() == RequestOptions({"a": 1}, ("seed",), IMAGES)


def test_a_teacher_of_another_house_is_asked_as_it_wants(monkeypatch, tiny_dataset, tiny_world, tmp_path):
    """One that refuses `seed`, `n` and `max_tokens`, takes frames as images, and has its reasoning in a field of its own."""

    def reply(body):
        kinds = {part["type"] for part in body["messages"][0]["content"]}
        unknown = [name for name in ("seed", "n", "max_tokens", "media_io_kwargs") if name in body]
        if unknown or kinds != {"image_url", "text"}:
            return 400, {"error": {"message": f"Unknown name {unknown or kinds}: Cannot find field."}}
        return {"choices": [choice("STOP", content="<answer>A</answer>", reasoning_content="I hear a dog.")]}

    flags = {"dataset": tiny_dataset, "split": "train", "media_dir": tiny_world / "clips", "model": "other", "num_traces": 2}
    flags |= {"num_frames": 2, "limit": 2, "frames": "images", "request_field": "max_completion_tokens=64"}
    with HouseServer(reply) as server:
        words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        words += ["--omit_field", "seed", "n", "max_tokens", "--base_url", server.base_url, "--output_dir", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["traces.py", *words])
        traces.main()
    for row in read_rows(tmp_path):
        assert [trace["text"] for trace in row["traces"]] == ["<think>I hear a dog.</think><answer>A</answer>"] * 2
        read = [(trace["think"], trace["answer"], trace["finish_reason"]) for trace in row["traces"]]
        assert read == [("I hear a dog.", 0, "stop")] * 2
        output = "max_completion_tokens=64, no max_tokens, no n, no seed, frames as images"
        assert row["teacher_revision"] == f"other at its server ({output})"
    settings = json.loads((tmp_path / "stage.json").read_text())["settings"]
    assert settings["omit_field"] == ["max_tokens", "n", "seed"] and settings["frames"] == "images"


def test_an_evaluation_records_what_it_asked(monkeypatch, tiny_dataset, tiny_world, tmp_path):
    words = ["--benchmark", "avqa", "--dataset", str(tiny_dataset), "--split", "validation", "--model", "other", "--limit", "2"]
    words += ["--modality", "audio_video", "--media_dir", str(tiny_world / "clips"), "--frames", "images"]
    words += ["--request_field", "temperature=1", "--omit_field", "seed", "--output_dir", str(tmp_path)]
    with HouseServer(lambda _: chat("A")) as server:
        generate.main([*words, "--base_url", server.base_url])
    assert {(body["temperature"], "seed" in body) for body in server.bodies} == {(1, False)}
    kinds = [part["type"] for part in server.bodies[0]["messages"][0]["content"]]
    assert kinds == ["input_audio", *["image_url"] * 6, "text"]
    results = json.loads((tmp_path / "results.json").read_text())
    output = "temperature=1, no seed, frames as images"
    assert (
        json.loads(results["generation"])["requests"] == output
        and results["model_revision"] == f"other at its server ({output})"
    )
    assert results["settings"]["request_field"] == ["temperature=1"]


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
         "; --request_field max_completion_tokens=N --omit_field max_tokens leaves it out"),
        ("n must be 1", "; --omit_field n leaves it out"),
        ("Parameter n must be equal to 1 when sampling", "; --omit_field n leaves it out"),
        ("This model supports only n = 1", "; --omit_field n leaves it out"),
        ("n > 1 is not supported", "; --omit_field n leaves it out"),
        ("Option n is long: temperature must be 1", ""),
        ("the batch of size n must be 12", ""),
        ("too long", ""),
    ],
)  # fmt: skip
def test_the_remedy_is_whole_and_n_needs_no_quotes(message, remedy):
    with HouseServer(lambda _: (400, {"error": {"message": message}})) as server:
        (result,) = ask(server, RequestOptions(), SAMPLED, ChatRequest("q", "q"))
    assert result.detail.partition(message)[2] == remedy

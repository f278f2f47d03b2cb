"""A model is looked up at its server before hours of work: what stops a run, what is only said, and what is no sign at all."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dataset_builders import traces
from sightsound.cli import InputError
from sightsound.engines import openai_models
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.openai_models import look_up_all
from sightsound.engines.runner import run_requests
from sightsound.stage import Journal
from tests.support.house_server import HouseServer, chat
from tests.support.tiny import REPO


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
NAME = "Qwen/Qwen2.5-Omni-7B"
TODAY = datetime.now(UTC).date()


def models(*names: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]}


def looked_up(listed: Any, name: str = NAME, **server: Any) -> str:
    with HouseServer(lambda _: chat("yes"), listed, **server) as house:
        (message,) = look_up_all(name, [house.base_url])
        assert house.bodies == [], "nothing is asked of the model"
        return message.replace(house.base_url, "URL")


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        (models("other", NAME), NAME),
        (models("models/gemini-2.5-flash"), "gemini-2.5-flash"),  # Gemini
        (models("gemini-2.5-flash"), "models/gemini-2.5-flash"),
        ([{"id": NAME, "type": "chat"}], NAME),  # Together: a list alone
        ({"models": [{"name": "qwen2.5vl:latest", "model": "qwen2.5vl:latest"}]}, "qwen2.5vl"),  # Ollama
        (models("meta/llama"), "meta/llama:free"),  # a variant of OpenRouter, a provider of Hugging Face
        (models("openai/*", "other"), "openai/gpt-audio"),  # a wildcard of LiteLLM
        (models("/models/omni.gguf", aliases=["omni", NAME]), NAME),  # llama.cpp
        ({"data": [NAME]}, NAME),
        (models("base", NAME, root=None, parent="base"), NAME),  # a LoRA of vLLM
    ],
)
def test_a_name_that_is_listed_is_found_in_whatever_form(listed, name):
    assert looked_up(listed, name) == f"URL lists {name}."


def test_a_model_that_only_its_own_route_tells_is_found():
    assert looked_up(models("other"), of_models={NAME: {"id": NAME, "object": "model"}}) == f"URL lists {NAME}."


@pytest.mark.parametrize(
    "listed",
    [
        (404, {"error": {"message": "no such route"}}),
        (405, b"Method Not Allowed"),
        (501, {}),
        (403, {"error": {"message": "this key may not list models"}}),
        (401, {"error": {"message": "no key"}}),
        (500, b""),
        b"<html>Welcome</html>",
        b"",
        {"object": "list", "data": []},
        {"data": None},
        {"data": {}},
        {"data": [None, {}, {"id": 3}]},
        ["", 3, None],
        "models",
        None,
        models("claude", "other") | {"has_more": True},
    ],
)
def test_a_server_without_a_list_of_all_its_models_is_no_error(listed):
    assert looked_up(listed).startswith(f"{NAME} was not looked up at URL: ")


def test_azure_lists_other_names_than_those_of_its_deployments(monkeypatch):
    monkeypatch.setattr(openai_models, "_AZURE", ("127.0.0.1",))
    assert "was not looked up" in looked_up(models("gpt-4o"), "my-deployment")


def test_a_name_that_is_not_listed_is_an_error_that_names_those_listed_nearest_first():
    names = ["a", "b", "c", "Qwen/Qwen2.5-VL-7B-Instruct", "whisper", "d", "Qwen2.5-Omni-7B"]
    with pytest.raises(InputError) as stopped:
        looked_up(models(*names))
    message = str(stopped.value)
    assert f"serves no model named {NAME}; it lists Qwen2.5-Omni-7B, Qwen/Qwen2.5-VL-7B-Instruct, " in message
    assert "and 2 more; give one of these names" in message and "\n" not in message


@pytest.mark.parametrize("name", ["qwen2.5vl:32b", NAME.lower(), "Qwen2.5-Omni-7B"])
def test_a_name_that_is_merely_alike_is_not_the_name(name):
    with pytest.raises(InputError, match="serves no model named"):
        looked_up(models("qwen2.5vl:7b", NAME), name)


FUTURE = TODAY + timedelta(days=30)
PAST = TODAY - timedelta(days=1)


@pytest.mark.parametrize(
    "entry",
    [
        {"shutdown_date": FUTURE.isoformat()},
        {"shutdown_date": f"{FUTURE.isoformat()}T00:00:00Z"},
        {"shutdown_date": int(datetime(FUTURE.year, FUTURE.month, FUTURE.day, tzinfo=UTC).timestamp())},
        {"expiration_date": FUTURE.isoformat(), "deprecation_date": PAST.isoformat()},
    ],
)
def test_the_day_on_which_a_model_ends_is_told(entry):
    assert looked_up(models(NAME, **entry)) == f"URL says that {NAME} will be shut down on {FUTURE}, in 30 days."


def test_a_model_that_has_ended_is_an_error():
    with pytest.raises(InputError, match=f"says that {NAME} was shut down on {PAST}; give another model"):
        looked_up(models(NAME, shutdown_date=PAST.isoformat()))
    assert "lists" in looked_up(models("other", shutdown_date=PAST.isoformat())["data"] + [{"id": NAME}]), "another one's end"


def test_a_model_that_is_deprecated_may_go_on():
    for entry in ({"deprecation": PAST.isoformat()}, {"deprecation": {"inference": 10**9, "fine_tune": 9}}):
        assert "is deprecated from 20" in looked_up(models(NAME, **entry))
    for entry in ({"shutdown_date": None}, {"shutdown_date": "unknown"}, {"shutdown_date": 0}, {"deprecation": True}):
        assert looked_up(models(NAME, **entry)) == f"URL lists {NAME}.", entry


def ask(server: HouseServer, folder, model: str = NAME) -> dict[str, Any]:
    journal = Journal(folder / "journal.jsonl")
    try:
        engine = OpenAIEngine(model, server.base_url, 1)
        run_requests(engine, ["a", "b"], lambda key: ChatRequest(key, key), GREEDY, journal, "test")
    finally:
        journal.close()
    return journal.entries


def test_a_run_asks_nothing_of_a_server_that_does_not_serve_its_model(tmp_path, capsys):
    with HouseServer(lambda _: chat("yes"), models("other")) as server:
        with pytest.raises(InputError, match=f"{server.base_url} serves no model named {NAME}; it lists other"):
            ask(server, tmp_path)
        assert server.bodies == []
        assert len(ask(server, tmp_path, "other")) == 2
    with HouseServer(lambda _: chat("yes"), models("other")) as server:
        assert len(ask(server, tmp_path)) == 2, "all is journaled: the server need not serve the model any more"
    (tmp_path / "journal.jsonl").unlink()
    with HouseServer(lambda _: chat("yes"), models(NAME, shutdown_date=FUTURE.isoformat())) as server:
        assert len(ask(server, tmp_path)) == 2
    assert f"warning: {server.base_url} says that {NAME} will be shut down on {FUTURE}, in 30 days." in capsys.readouterr().err


def given(monkeypatch, main: Callable[[], None], **flags: Any) -> None:
    """Run a script's `main` on these flags."""
    words = [part for name, value in flags.items() for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
    monkeypatch.setattr(sys, "argv", ["script", *words])
    main()


def test_the_look_up_has_a_command_of_its_own():
    with HouseServer(lambda _: chat("yes"), models("other")) as server:
        command = [sys.executable, "-m", "sightsound.engines.openai_models", "--model", NAME, "--base_url", server.base_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    message = f"error: {server.base_url} serves no model named {NAME}; it lists other; give one of these names\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_the_command_needs_a_server_that_answers_and_no_list(monkeypatch, capsys):
    with HouseServer(lambda _: chat("yes"), models(NAME)) as server:
        given(monkeypatch, openai_models.main, model=NAME, base_url=server.base_url)
        assert capsys.readouterr().out == f"{server.base_url} lists {NAME}.\n"
    with pytest.raises(InputError, match=r"cannot be looked up at .*: no answer \(is the server running\?\)"):
        given(monkeypatch, openai_models.main, model=NAME, base_url=server.base_url)
    with (
        HouseServer(lambda _: chat("yes"), (401, {})) as server,
        pytest.raises(InputError, match="set OPENAI_API_KEY to a key"),
    ):
        given(monkeypatch, openai_models.main, model=NAME, base_url=server.base_url)
    with HouseServer(lambda _: chat("yes")) as server:
        given(monkeypatch, openai_models.main, model=NAME, base_url=server.base_url)
        assert "was not looked up" in capsys.readouterr().out


def test_a_dry_run_looks_the_model_up(monkeypatch, capsys, tiny_dataset, tiny_world, tmp_path):
    flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "output_dir": tmp_path, "model": NAME, "dry_run": True}
    with HouseServer(lambda _: chat("yes"), models("other")) as server:
        with pytest.raises(InputError, match=f"serves no model named {NAME}; it lists other"):
            given(monkeypatch, traces.main, **flags, base_url=server.base_url)
        given(monkeypatch, traces.main, **flags | {"model": "other"}, base_url=server.base_url)
        assert capsys.readouterr().out.endswith(f"{server.base_url} lists other.\n")
    with HouseServer(lambda _: chat("yes"), models(NAME, shutdown_date=FUTURE.isoformat())) as server:
        given(monkeypatch, traces.main, **flags, base_url=server.base_url)
        assert f"will be shut down on {FUTURE}" in capsys.readouterr().out
        assert server.bodies == []
    given(monkeypatch, traces.main, **flags, base_url=server.base_url)
    assert "was not looked up" in capsys.readouterr().out, "a server that is yet to be started"

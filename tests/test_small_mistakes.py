"""Mistakes in a command are named for what they are."""

import sys

import httpx
import pytest

from dataset_builders.traces import TracesArguments
from sightsound.cli import InputError, parse_arguments, read_json
from sightsound.data.clips import MediaError
from sightsound.data.schema import MISSING_MEDIA
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.cost import dry_run
from sightsound.engines.request_fields import RequestFieldArguments, options_of
from sightsound.hub import retries
from sightsound.models.sources import pin_model
from sightsound.training.recipe import parse_config


def test_a_model_folder_that_is_not_there_has_no_revision_and_only_models_resemble_it(tmp_path):
    (tmp_path / "nomodels").mkdir()  # a folder of traces, say
    with pytest.raises(InputError) as raised:
        pin_model("model_name_or_path", f"{tmp_path}/nomodel", None, "main")
    assert str(raised.value) == f"--model_name_or_path {tmp_path}/nomodel: there is no such folder"
    (tmp_path / "nomodels" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no such folder \(did you mean .*/nomodels\?\)$"):
        pin_model("model_name_or_path", f"{tmp_path}/nomodel", None, "main")


def test_a_config_that_is_not_there_is_named(monkeypatch):
    from trl import SFTConfig

    monkeypatch.setattr(sys, "argv", ["sft.py", "--config", "nofile.yaml"])
    with pytest.raises(InputError, match=r"--config nofile\.yaml: there is no such file"):
        parse_config((SFTConfig,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,question\n1,dog\n", "a CSV table"),
        (b"\xef\xbb\xbfid;question\n1;dog\n", "a CSV table"),
        ('[{"id": 1}]'.encode("utf-16"), "it is UTF-16"),
        ('[{"id": 1}]'.encode("utf-16-le"), "it is UTF-16"),
        ('["déjà"]'.encode("latin-1"), "not UTF-8, perhaps Latin-1"),
        (b'[{"id": 1, "b"', "cut short"),
        (b"", "cut short"),
    ],
)
def test_a_file_that_is_no_json_is_named_for_what_it_is(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="is not JSON that can be read") as raised:
        read_json(str(tmp_path / "a.json"))
    assert message in str(raised.value) and (message == "cut short") == ("cut short" in str(raised.value))


@pytest.mark.parametrize("url", ["localhost:8765/v1", "127.0.0.1:8000/v1", "ftp://host/v1", ""])
def test_an_address_without_http_is_refused_at_once(url):
    for given in ([url], ["http://a/v1", url]):
        with pytest.raises(InputError, match="begins with http:// or https://"):
            options_of(RequestFieldArguments(), given, ())
    options_of(RequestFieldArguments(), ["http://node-{rank}:8000/v1", "https://b/v1"], ())


def test_a_negative_temperature_is_refused(capsys):
    words = ["--dataset", "d", "--media_dir", "m", "--model", "t", "--output_dir", "o", "--temperature"]
    with pytest.raises(SystemExit):
        parse_arguments(TracesArguments, None, [*words, "-0.5"])
    assert "argument --temperature: expected at least 0" in capsys.readouterr().err
    assert parse_arguments(TracesArguments, None, [*words, "0"]).temperature == 0


def test_a_dry_run_has_one_number_of_requests(tmp_path):
    def build(key):
        if int(key) % 4 == 0:
            raise MediaError(MISSING_MEDIA, "no clip")
        return ChatRequest(key, "What is heard?")

    keys = [str(i) for i in range(20)]
    text = dry_run(keys, build, Sampling(1, 0, 8, 0), model="m", base_url=None, output_dir=tmp_path)
    head, _, _, requests, *_ = text.splitlines()
    assert head.startswith("m: 15 requests, 0 of them journaled") and requests.split()[-2:] == ["15", "15"]


def test_a_network_that_is_down_is_said_once_with_the_host_of_the_hub(monkeypatch, capsys):
    monkeypatch.setattr(retries.time, "sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")

    def call():
        with httpx.Client(trust_env=False) as client:
            client.get("http://127.0.0.1:1/api")

    with pytest.raises(InputError, match=r"no connection to the Hub at hub\.invalid \("):
        retries.retrying(call)
    assert capsys.readouterr().out.count("no connection to the Hub at hub.invalid") == 1

"""The real vLLM, started without `--generation-config vllm`: a checkpoint's `generation_config.json` changes nothing."""

import json
import shutil
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sightsound.data.audio import decode_audio
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.openai_protocol import content_of, request_body
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.sampling import NEUTRAL
from sightsound.engines.transformers import TransformersEngine
from tests.support import served


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`"),
]

OPTIONS = RequestOptions()
GREEDY = Sampling(n=1, temperature=0.0, max_tokens=24, seed=0)
DRAWN = Sampling(n=8, temperature=1.0, max_tokens=24, seed=0)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> SimpleNamespace:
    """Two that differ in nothing but their generation configs; `server` serves the one that ships more than the others."""
    folder = tmp_path_factory.mktemp("shipped")
    plain = served.build_checker(folder / "plain")
    shipping = Path(shutil.copytree(plain, folder / "shipping"))
    served.ship_generation_config(shipping)
    with served.serving(shipping, folder / "server.log") as server:
        server.wait()
        client = OpenAIEngine("tiny", server.base_url, 4)
        yield SimpleNamespace(plain=plain, shipping=shipping, server=server, client=client)
        for replica in client._replicas._all:
            replica.client.close()


@pytest.fixture(scope="module")
def requests(questions) -> list[ChatRequest]:
    return [ChatRequest(row["id"], row["question"], audio=decode_audio(row["audio"]).waveform) for row in questions[:8]]


def said(engine: Any, requests: list[ChatRequest], sampling: Sampling) -> dict[str, list[str]]:
    results = [result for part in engine.complete(requests, sampling) for result in part]
    assert [result.detail for result in results if result.outcome] == []
    assert {name: results[0].sampling[name] for name in NEUTRAL} == NEUTRAL
    return {result.key: [completion.text for completion in result.completions] for result in results}


def asked_bare(server: served.VllmServer, request: ChatRequest) -> str:
    """The answer to a request that sets no more than it did before."""
    body = request_body("tiny", content_of(request, OPTIONS), None, GREEDY, request.key, OPTIONS, neutral={})
    post = urllib.request.Request(
        f"{server.base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(post) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def test_greedy_text_is_that_of_the_checkpoint_without_the_file_on_the_server_and_in_process(checkpoints, requests):
    expected = said(TransformersEngine.load(str(checkpoints.plain), len(requests), GREEDY), requests, GREEDY)
    assert len({text for (text,) in expected.values()}) > 4, "a model that says the same of every clip proves nothing"
    assert said(TransformersEngine.load(str(checkpoints.shipping), len(requests), GREEDY), requests, GREEDY) == expected
    assert said(checkpoints.client, requests, GREEDY) == expected
    bare = {request.key: [asked_bare(checkpoints.server, request)] for request in requests}
    assert bare != expected, "the server does read the file"


def test_traces_differ_at_temperature_one_on_the_server_and_in_process(checkpoints, requests):
    for engine in (TransformersEngine.load(str(checkpoints.shipping), 64, DRAWN), checkpoints.client):
        assert [len(set(texts)) for texts in said(engine, requests, DRAWN).values()] == [8] * len(requests)

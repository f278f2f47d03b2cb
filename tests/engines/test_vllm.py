"""
The real engine: vLLM's CPU build serves a tiny Qwen2.5-VL and a tiny Qwen2-Audio, and the stages talk to it as on a GPU.

`make test-slow` installs it first (`make setup-vllm`).
"""

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sightsound.data.audio import decode_audio
from sightsound.data.frames import Frames, load_frames
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.request_fields import RequestOptions
from sightsound.engines.transformers import TransformersEngine
from sightsound.method.question_writing import SHARES, reply_schema
from sightsound.method.verdicts import ACCEPT, CUT, NO_REASONING, REJECT
from tests.support import served
from tests.support.tiny import read_ledger, read_rows, run_script


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`"),
]

GREEDY = Sampling(n=1, temperature=0.0, max_tokens=24, seed=0)
NUM_TRACES = 8
TRACES = Sampling(NUM_TRACES, 1.0, 64, seed=0)
# An encoder cache for one video of 364 x 364 (1,352 tokens) at a time.
SMALL_SIDE = 364
SMALL = {"max-num-batched-tokens": 2048, "max-num-seqs": 64}


@pytest.fixture(scope="module")
def engines(tiny_world, tmp_path_factory):
    """All that the module talks to, started at once: most of a start is imports, one after the other, on one core each."""
    folder = tmp_path_factory.mktemp("served")
    models = {"checker": served.build_checker(folder / "checker"), "small": served.build_teacher(folder / "small", SMALL_SIDE)}
    with contextlib.ExitStack() as stack:

        def serve(name: str, **changed: Any) -> served.VllmServer:
            return stack.enter_context(served.serving(models[name], folder / f"{name}.log", **changed))

        servers = {"checker": serve("checker"), "small": serve("small", **SMALL)}
        models["teacher"] = served.train_teacher(tiny_world, folder / "teacher", max_steps=100)
        servers["teacher"] = serve("teacher")
        for server in servers.values():
            server.wait()
        yield SimpleNamespace(**servers, models=models)


def said(engine, requests, sampling=GREEDY) -> dict[str, str]:
    answered = [result for part in engine.complete(requests, sampling) for result in part]
    assert [result.detail for result in answered if result.outcome] == []
    return {result.key: result.completions[0].text for result in answered}


def assert_same_text(model, server, requests):
    direct = TransformersEngine.load(str(model), len(requests), GREEDY)
    assert direct.model.dtype.is_floating_point and direct.model.dtype.itemsize == 4, "compared in float32"
    here, there = said(direct, requests), said(OpenAIEngine("tiny", server.base_url, 4), requests)
    assert len(set(here.values())) > 4, "a model that says the same of every clip proves nothing"
    assert there == here


def test_the_server_says_what_the_model_says_in_this_process_for_video(engines, tiny_world, questions):
    """
    Frames, their times and the template: all three have to agree.

    The frames are 280 x 280 for a reason: after a video transformers 5.17 goes on at the position max(height, width) of the
    grid, and vLLM (as Qwen2.5-VL was trained) at the first that no frame has. The two agree while time is no longer than
    that: three pairs of frames four positions apart end at 9, within a grid of 10 x 10.
    """
    clips = sorted((tiny_world / "clips").glob("tr*.mp4"))
    requests = []
    for i in range(20):
        pixels = load_frames(str(clips[i % len(clips)]), num_frames=6, max_pixels=56 * 56).pixels
        large = np.repeat(np.repeat(pixels, 5, axis=1), 5, axis=2)
        frames = Frames(large, fps=3.0 if i % 2 else 1.0)  # whoever lost the frame rate would say something else
        requests.append(ChatRequest(str(i), questions[i % len(questions)]["video_question"], video=frames))
    assert_same_text(engines.models["teacher"], engines.teacher, requests)
    faster = [replace(request, video=replace(request.video, fps=2.0)) for request in requests[::2]]
    client = OpenAIEngine("tiny", engines.teacher.base_url, 4)
    assert said(client, faster) != said(client, requests[::2]), "the frame rate reaches the model"


def test_the_server_says_what_the_model_says_in_this_process_for_audio(engines, questions):
    sounds = [decode_audio(row["audio"]).waveform for row in questions]
    requests = [ChatRequest(str(i), f"Question {i}?", audio=sounds[i % len(sounds)]) for i in range(20)]
    assert_same_text(engines.models["checker"], engines.checker, requests)


def computed_and_asked(server, engine, requests, sampling) -> tuple[float, list[int]]:
    """Prompt tokens that the server's engine computed meanwhile, and those of each request's prompt."""
    before = server.prompt_tokens_computed()
    results = [result for part in engine.complete(requests, sampling) for result in part]
    assert {len(result.completions) for result in results} == {sampling.n}, [result.detail for result in results]
    return server.prompt_tokens_computed() - before, [result.usage.prompt_tokens for result in results]


def test_eight_traces_of_each_of_eight_videos_cost_one_prefill_per_video(engines):
    """One request per video with n traces; what is computed again is the part of the prompt that fills no whole block."""
    engine = OpenAIEngine("tiny", engines.teacher.base_url, concurrency=8)
    computed, prompts = computed_and_asked(engines.teacher, engine, served.long_videos(8, seed=1), TRACES)
    assert computed == sum(tokens + (NUM_TRACES - 1) * (tokens % served.FLAGS["block-size"]) for tokens in prompts)
    assert computed <= 1.05 * sum(prompts), f"{computed:.0f} for {len(prompts)} prompts of {prompts[0]} tokens"


def test_priming_keeps_one_prefill_per_video_where_the_videos_in_flight_do_not_fit_the_encoder_cache(engines):
    # vLLM's CPU build dies of a seed when it computes a prompt in two steps: torch's CPU generators have no offset to set back.
    sampling = Sampling(4, 1.0, 32, seed=0)
    shares = {}
    for prime in (False, True):
        without_seed = RequestOptions(omitted=("seed",))
        engine = OpenAIEngine("tiny", engines.small.base_url, concurrency=8, prime=prime, options=without_seed)
        # 1,379 tokens, of which 3 fill no whole block: those are computed again whatever happens.
        requests = served.long_videos(8, seed=2 + prime, side=SMALL_SIDE)
        computed, prompts = computed_and_asked(engines.small, engine, requests, sampling)
        shares[prime] = computed / sum(prompts)
    assert shares[False] > 1.5, "there was nothing to be saved"
    assert shares[True] <= 1.05


def test_traces_and_verdicts_end_to_end(engines, tiny_dataset, tiny_world, tmp_path):
    traces, verdicts = tmp_path / "traces", tmp_path / "verdicts"
    teacher, checker = engines.teacher.base_url, engines.checker.base_url
    done = run_script(
        "dataset_builders/traces.py",
        **{"dataset": tiny_dataset, "split": "train", "media_dir": tiny_world / "clips", "model": "tiny"},
        **{"base_url": teacher, "num_traces": NUM_TRACES, "num_frames": 6, "max_tokens": 64, "temperature": 0.7},
        output_dir=traces,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_rows(traces)
    assert {len(row["traces"]) for row in rows} == {NUM_TRACES}
    assert {trace["finish_reason"] for row in rows for trace in row["traces"]} <= {"stop", "length"}
    assert any(len({trace["text"] for trace in row["traces"]}) > 1 for row in rows), "drawn, not repeated"
    done = run_script(
        "dataset_builders/verdicts.py",
        **{"dataset": tiny_dataset, "split": "train", "traces": traces, "checker": "tiny", "base_url": checker},
        **{"verdict_mode": "yes_no", "max_tokens": 1, "output_dir": verdicts},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    given = {trace["verdict"] for row in read_rows(verdicts) for trace in row["traces"]}
    # Random weights decide: that there are verdicts is the point, not which.
    assert given & {ACCEPT, REJECT} and given <= {ACCEPT, REJECT, CUT, NO_REASONING}
    assert [entry["id"] for entry in read_ledger(verdicts)] == [row["id"] for row in rows]


def test_a_reply_has_the_form_of_the_schema_that_is_sent_with_the_request(engines):
    """A model this small never closes a text of JSON by itself, so a complete reply is shown with a schema of two texts."""
    schemas = {"free": None, "closed": {"type": "string", "enum": ["which", "why"]}, "questions": reply_schema(SHARES)}
    requests = [ChatRequest(key, "What is heard?", reply_schema=schema) for key, schema in schemas.items()]
    texts = said(OpenAIEngine("tiny", engines.teacher.base_url, 4), requests, replace(GREEDY, max_tokens=48))
    assert json.loads(texts["closed"]) in ("which", "why")
    begun = "".join(texts["questions"].split())  # the form allows any white space
    assert begun.startswith("{") and '{"questions":['.startswith(begun[:14])
    assert not texts["free"].lstrip().startswith("{")

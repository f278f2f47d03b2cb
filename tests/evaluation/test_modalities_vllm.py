"""
A student that hears and sees, asked by audio, by video and by both: vLLM's server answers as the model in this process.

`make test-slow` installs vLLM first (`make setup-vllm`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sightsound.data.frames import Frames, load_frames
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.transformers import TransformersEngine
from tests.support import evaluation, served
from tests.support.tiny import WORLD_SIZE, run_script


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`"),
]

MODALITIES = ("audio", "video", "audio_video")
LORA = "student"
GREEDY = Sampling(n=1, temperature=0.0, max_tokens=24, seed=0)


@pytest.fixture(scope="module")
def session(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("modalities")
    model = served.build_student("qwen2_5_omni", folder / "model")
    adapter = served.build_adapter(model, folder / "adapter")
    flags = {"max-lora-rank": 8, "lora-modules": f"{LORA}={adapter}", "enable-lora": True}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served.serving(model, folder / "log", **flags))
        annotations, clips = tiny_world / "test_qa.json", tiny_world / "clips"
        done = run_script(
            "dataset_builders/avqa_audio.py",
            **{"test_annotations": annotations, "media_dir": clips, "output_dir": folder / "avqa-audio", "num_proc": 1},
        )
        assert done.returncode == 0, done.stderr
        server.wait()
        yield SimpleNamespace(server=server, data=folder / "avqa-audio", clips=clips, model=model, adapter=adapter)


def outputs_of(session: SimpleNamespace, folder: Path, modality: str, **engine: object) -> list[str]:
    """What a run over the test split writes."""
    videos = {} if modality == "audio" else {"media_dir": session.clips, "num_frames": 6}
    asked = {"benchmark": "avqa", "dataset": session.data, "split": "test", "modality": modality, "method": "cot"}
    evaluation.run(**asked, **videos, **engine, max_tokens=24, output_dir=folder)
    _, rows = evaluation.read(folder)
    assert len(rows) == WORLD_SIZE["test"] and all(row["output"] for row in rows)
    return [row["output"] for row in rows]


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_server_answers_as_the_model_in_this_process(session, modality, tmp_path):
    here = outputs_of(session, tmp_path / "here", modality, model=session.model, batch_size=4)
    there = outputs_of(session, tmp_path / "there", modality, model="tiny", base_url=session.server.base_url)
    assert len(set(here)) > 4, "a model that says the same of every clip proves nothing"
    assert there == here


def test_an_adapter_is_served_by_the_name_under_which_peft_saves_it(session, tmp_path):
    base = outputs_of(session, tmp_path / "base", "audio", model="tiny", base_url=session.server.base_url)
    here = outputs_of(session, tmp_path / "here", "audio", model=session.adapter, batch_size=4)
    there = outputs_of(session, tmp_path / "there", "audio", model=LORA, base_url=session.server.base_url)
    assert there == here
    assert there != base, "vLLM has ignored the adapter"


def test_both_engines_take_the_frame_rate_of_each_video(session):
    """The processor itself takes 2 frames per second for granted."""
    clip = str(min(session.clips.glob("*.mp4")))
    pixels = load_frames(clip, num_frames=6, max_pixels=56 * 56).pixels
    rates = (0.25, 0.5, 1.0, 1.6, 2.0)
    requests = [ChatRequest(str(fps), "What is seen?", video=Frames(pixels, fps)) for fps in rates]
    sound = np.sin(np.arange(35 * 16_000) / 20).astype(np.float32)
    requests += [replace(each, key=f"{each.key} heard", audio=sound) for each in requests]
    direct = TransformersEngine.load(str(session.model), len(rates), GREEDY)
    batches = (requests[: len(rates)], requests[len(rates) :])
    here = {r.key: r.completions[0].text for batch in batches for part in direct.complete(batch, GREEDY) for r in part}
    client = OpenAIEngine("tiny", session.server.base_url, 4)
    there = {r.key: r.completions[0].text for part in client.complete(requests, GREEDY) for r in part if not r.outcome}
    assert there == here
    assert len(set(there.values())) > len(rates), "the frame rate reaches the model"

"""Rollouts with vLLM: what can be tested without it, and training with the real engine (`make test-slow` installs it)."""

import http.server
import importlib.util
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Qwen2AudioForConditionalGeneration, VoxtralConfig
from trl import GRPOConfig

from sightsound.cli import InputError
from sightsound.models.family import family_of
from sightsound.training.vllm_rollouts import check_rollouts, check_server, read_clips, serve_command
from tests.support import served
from tests.support.tiny import REPO
from tests.support.trainers import make_rows, make_trainer


BOUND = 1e-4
MODES = ("colocate", "server")
MODEL = "Qwen/Qwen2-Audio-7B-Instruct"


def make_args(folder: Path, **changed: Any) -> GRPOConfig:
    engine = {"use_vllm": True, "vllm_mode": "server", "vllm_server_timeout": 0.0}
    return GRPOConfig(output_dir=str(folder), bf16=False, use_cpu=True, **(engine | changed))


def test_weights_have_the_names_that_vllm_and_released_checkpoints_give_them(student_checkpoint):
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    with safe_open(student_checkpoint / "model.safetensors", "pt") as released:
        assert sorted(family_of(model.config).vllm_name(name) for name, _ in model.named_parameters()) == sorted(
            released.keys()
        )


def test_a_clip_is_read_once_and_cut_to_the_window(questions):
    cells = [questions[i]["audio"] for i in (0, 1, 0)]
    first, other, again = read_clips(cells, window_s=0.5)
    assert again is first and not np.array_equal(first[0], other[0])
    assert [len(clip) for clip in first] == [8000]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_so(student_checkpoint, questions, tmp_path):
    with pytest.raises(InputError, match=r"not installed.*use_vllm: false"):
        make_trainer(student_checkpoint, make_rows(questions), tmp_path, use_vllm=True)


def test_vllm_is_not_checked_where_it_is_not_used(tmp_path):
    check_rollouts(make_args(tmp_path, use_vllm=False), MODEL)


def test_a_family_that_vllm_cannot_sample_for_is_refused_with_the_reason(tmp_path):
    VoxtralConfig().save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"use_vllm: true: vLLM cannot sample for .* \(.*Mistral's format.*\); set use_vllm: false"
    ):
        check_rollouts(make_args(tmp_path), str(tmp_path))


def test_a_server_that_does_not_run_is_named_with_the_command_that_starts_it(tmp_path):
    port = served.free_port()
    with pytest.raises(InputError) as error:
        check_server(make_args(tmp_path, vllm_server_host="127.0.0.1", vllm_server_port=port), MODEL)
    assert f"no vLLM server at http://127.0.0.1:{port} after 0 s" in str(error.value)
    assert f"vllm.entrypoints.openai.api_server --model {MODEL} --port {port} --enable-scale-out" in str(error.value)


def test_the_command_for_a_gpu_starts_a_server_that_takes_weights():
    args = SimpleNamespace(device=torch.device("cuda", 0), vllm_server_port=8000)
    command = shlex.split(serve_command(args, MODEL))
    assert command[1:4] == ["vllm", "serve", MODEL] and json.loads(command[-1]) == {"backend": "nccl"}


@pytest.fixture
def server_without_flags() -> Iterator[str]:
    """A server with the health route and no other, like `vllm serve` without the flags, as far as it is checked."""

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_flags_that_a_running_server_lacks_are_named(server_without_flags, tmp_path):
    with pytest.raises(InputError, match="runs without VLLM_SERVER_DEV_MODE=1 and --enable-scale-out; start it with"):
        check_server(make_args(tmp_path, vllm_server_base_url=server_without_flags), MODEL)


def real_engine(test: Callable[..., None]) -> Callable[..., None]:
    skipped = pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`")
    return pytest.mark.slow(skipped(test))


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """
    The output of `tests/support/vllm_training.py`, with a server that the documented command starts, but without the flag that
    ignores the checkpoint's generation config: rollouts must not need it.
    """
    folder = tmp_path_factory.mktemp("rollouts")
    policy, port = served.build_policy(folder / "policy"), served.free_port()
    served.ship_generation_config(policy)
    output, log = folder / "differences.json", folder / "training.log"
    arguments = [policy, tiny_dataset, f"http://127.0.0.1:{port}", output]
    args, left_out = make_args(folder, vllm_server_port=port), ("--generation-config", "vllm")
    with served.serving_rollouts(policy, args, folder / "server.log", left_out), open(log, "w") as file:
        done = subprocess.run(
            [str(served.PYTHON), "-m", "tests.support.vllm_training", *map(str, arguments)],
            env=served.training_environment(),
            cwd=REPO,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    return json.loads(output.read_text())


@real_engine
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["full", "lora"])
def test_the_engine_has_the_weights_of_every_update(trained, mode, what):
    """Tower, projector and language model, or a LoRA of the latter; the control is an engine that keeps the first weights."""
    first, *updated = trained[mode][f"{what}_no_sync"]
    assert first < BOUND < min(updated)
    assert max(trained[mode][what]) < BOUND and len(trained[mode][what]) == 3


@real_engine
@pytest.mark.parametrize("mode", MODES)
def test_the_engine_uses_the_clip_of_each_prompt(trained, mode):
    """With the clips of two prompts exchanged, its log-probabilities differ from those of the model that is trained."""
    assert min(trained[mode]["other_clip"]) > 100 * BOUND


@real_engine
@pytest.mark.parametrize("mode", MODES)
def test_completions_are_drawn_from_the_policy_itself(trained, mode):
    """Its checkpoint ships top_k 1: all completions of a prompt would be equal, and every log-probability 0."""
    assert trained[mode]["different"] == 8


@real_engine
@pytest.mark.parametrize("mode", MODES)
def test_the_placeholder_of_a_clip_is_never_sampled(trained, mode):
    assert trained[mode]["placeholders"] == 0


@real_engine
def test_a_stale_encoder_cache_would_be_noticed(trained):
    """The control: without the reset, the same clips at every step would keep the features of an older tower."""
    assert min(trained["colocate"]["stale_clips"][1:]) > 100 * BOUND

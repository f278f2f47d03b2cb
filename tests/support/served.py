"""
Models that the CPU build of vLLM can serve, and that server.

vLLM's CPU kernels do not know the miniature's attention heads of 16, nor its Qwen2-Audio any window but Whisper's 30 s: these
models are the same with heads of 32 and that window.
"""

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightsound.data.frames import Frames
from sightsound.engines.base import ChatRequest
from tests.support.tiny import REPO, miniature_builders


# Made by `make setup-vllm`: vLLM brings a stack of its own, which the project's environment is kept free of.
PYTHON = REPO / ".venv-vllm" / "bin" / "python"

QUESTION = "What is heard?"
# 25 M parameters, for what is timed: of the usual tiny model's step, the engine's own Python would be most.
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
MROPE_SECTION = [4, 6, 6]
FLAGS = {
    "dtype": "float32",
    "max-model-len": 4096,
    "max-num-seqs": 16,
    "max-num-batched-tokens": 32768,
    "block-size": 32,
    "kv-cache-memory-bytes": "128M",
    "host": "127.0.0.1",
    "served-model-name": "tiny",
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def load_pretrain(side: int = 588) -> Any:
    """`recipes/miniature/pretrain.py` as a module, set to make models with heads of 32, for videos up to `side` x `side`."""
    # Under a name of its own: `tiny.miniature_builders` must not find these sizes.
    spec = importlib.util.spec_from_file_location("served_pretrain", REPO / "recipes" / "miniature" / "pretrain.py")
    pretrain = importlib.util.module_from_spec(spec)
    sys.modules["served_pretrain"] = pretrain  # dataclasses look their module up while they are made
    spec.loader.exec_module(pretrain)
    pretrain.TEXT.update(HEADS)
    pretrain.WINDOW_S, pretrain.HOP_LENGTH = 30, 160
    make_teacher = pretrain.make_teacher

    def make_wide_teacher() -> tuple[Any, Any]:
        model, processor = make_teacher()
        model.config.text_config.rope_parameters["mrope_section"] = MROPE_SECTION
        processor.video_processor.size["longest_edge"] = 16 * side * side
        return type(model)(model.config), processor  # its parts copied the sections when they were made

    pretrain.make_teacher = make_wide_teacher
    return pretrain


def train_teacher(world: Path, folder: Path, max_steps: int) -> Path:
    """A teacher that writes traces in their format; how often it is right does not matter."""
    flags = {"config": "recipes/miniature/teacher.yaml", "world": world, "output_dir": folder, "max_steps": max_steps}
    flags |= {"per_device_train_batch_size": 8, "warmup_steps": 5, "save_strategy": "no"}
    command = [sys.executable, "-m", "tests.support.served", *(str(p) for k, v in flags.items() for p in (f"--{k}", v))]
    subprocess.run(command, cwd=REPO, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return folder / "model"


def save_with_ends(model: Any, processor: Any, folder: Path) -> Path:
    from transformers import GenerationConfig

    from sightsound.training.checkpoints import save_checkpoint

    ids = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    save_checkpoint(model, processor, folder)
    return folder


def build_teacher(folder: Path, side: int = 588, **text: int) -> Path:
    """A Qwen2.5-VL with random weights that takes 16 frames of `side` x `side`; `text` changes its language model's sizes."""
    from transformers import set_seed

    set_seed(0)
    pretrain = load_pretrain(side)
    pretrain.TEXT.update(text)
    return save_with_ends(*pretrain.make_teacher(), folder)


def build_checker(folder: Path) -> Path:
    """A Qwen2-Audio with random weights whose first word is yes or no, depending on all that it is given."""
    import torch
    from transformers import set_seed

    set_seed(0)
    model, processor = load_pretrain().make_student()
    yes, no = (processor.tokenizer.encode(word)[0] for word in ("yes", "no"))
    direction = torch.randn(model.lm_head.weight.shape[1])
    with torch.no_grad():
        model.lm_head.weight[yes], model.lm_head.weight[no] = 10 * direction, -10 * direction
    return save_with_ends(model, processor, folder)


def never_write(model: Any, tokens: Sequence[int], weight: float = -20.0) -> None:
    """
    Have a model with random weights write some tokens as rarely as a trained one does.

    What an engine says of a token is its share among those that it may sample, and what is trained its share among all: random
    weights would give a clip's placeholder, which may not be sampled, as much as any other token.
    """
    import torch

    decoder = next(module for module in model.modules() if hasattr(module, "embed_tokens"))
    with torch.no_grad():
        # The first coordinate of the residual stream is the same for all words, and only the logits of `tokens` read it.
        model.get_input_embeddings().weight[:, 0] = 0.5
        for name, parameter in decoder.layers.named_parameters():
            if "o_proj" in name or "down_proj" in name:  # of experts, too: `(experts, hidden_size, moe_intermediate_size)`
                parameter[..., 0, :] = 0
        head = model.get_output_embeddings().weight
        head[:, 0] = 0
        head[list(tokens)] = 0
        head[list(tokens), 0] = weight


def build_policy(folder: Path) -> Path:
    """A Qwen2-Audio with random weights that, as any trained one, does not write a clip's placeholder."""
    import torch
    from transformers import set_seed

    set_seed(0)
    model, processor = load_pretrain().make_student()
    with torch.no_grad():
        model.lm_head.weight *= 5  # far from uniform
    never_write(model, [model.config.audio_token_id])
    return save_with_ends(model, processor, folder)


def build_student(family: str, folder: Path) -> Path:
    """
    `families.build_family` with heads of 32, and with weights that have it say something else of each clip.

    It writes neither placeholders nor half a character, which vLLM leaves out at the end of a text.
    """
    import torch
    from transformers import set_seed

    from sightsound.models.family import family_of
    from tests.support.families import BUILDERS

    set_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature_builders(), "HOP_LENGTH", 160)  # vLLM expects the frames of the real window
        model, processor = BUILDERS[family]()
    text = model.config.get_text_config()
    for name, value in HEADS.items():
        setattr(text, name, value)
    if "mrope_section" in text.rope_parameters:
        text.rope_parameters["mrope_section"] = MROPE_SECTION
    model = type(model)(model.config)  # its parts copied the config when they were made
    decoder = next(module for module in model.modules() if hasattr(module, "embed_tokens"))
    with torch.no_grad():
        model.get_output_embeddings().weight *= 5
        model.get_input_embeddings().weight *= 10
        for name, weight in decoder.layers.named_parameters():
            if "_proj" in name and not name.endswith("bias"):  # else it would repeat its first word, whatever it is given
                weight *= 5
    tokenizer = processor.tokenizer
    never = family_of(model.config).media_token_ids(model.config)
    never += [token for token in range(len(tokenizer)) if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([token])]
    never_write(model, never, weight=-400.0)
    return save_with_ends(model, processor, folder)


def build_adapter(model: Path, folder: Path) -> Path:
    """A LoRA on a student, as training saves it; weak, so that its model does not say one thing only."""
    import torch
    from peft import LoraConfig, get_peft_model

    from sightsound.models.family import family_of
    from sightsound.models.loading import load_generator
    from sightsound.training.checkpoints import save_adapter

    torch.manual_seed(0)
    base, processor, _ = load_generator(str(model))
    targets = family_of(base.config).lora_target_modules
    lora = LoraConfig(r=8, lora_alpha=1, target_modules=targets, init_lora_weights=False)
    save_adapter(get_peft_model(base, lora), processor, folder)
    return folder


SHIPPED = {"do_sample": True, "top_k": 1, "top_p": 0.5, "min_p": 0.5, "temperature": 0.1, "max_new_tokens": 4}
SHIPPED |= {"repetition_penalty": 1.3, "presence_penalty": 1.5, "frequency_penalty": 1.5, "no_repeat_ngram_size": 2}


def ship_generation_config(checkpoint: Path) -> None:
    """Have its `generation_config.json` say how to sample, beside the tokens that end a text."""
    file = checkpoint / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SHIPPED))


def long_videos(count: int, seed: int, side: int = 588) -> list[ChatRequest]:
    """
    Questions about videos of different content, which look to a compressor like filmed ones: soft, with a sensor's noise.

    16 frames of 588 x 588 are 3,528 tokens; those of the paper's teacher are of that order.
    """
    from PIL import Image

    requests, random = [], np.random.default_rng(seed)
    for i in range(count):
        coarse = random.integers(8, 240, (16, 12, 12, 3), dtype=np.uint8)
        noise = random.integers(0, 8, (16, side, side, 1), dtype=np.uint8)
        soft = np.stack([Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR) for frame in coarse])
        requests.append(ChatRequest(f"{seed}-{i}", QUESTION, video=Frames(soft + noise, 2.0)))
    return requests


def serving_rollouts(policy: Path, args: Any, log: Path, without: Sequence[str] = ()) -> Any:
    """
    The server that the documented command starts for GRPO, for a `with` block.

    Args:
        args (`GRPOConfig`): Names its port.
        without (`Sequence[str]`): Words of the command to leave out.
    """
    from sightsound.training.vllm_rollouts import serve_command

    flags = {name: value for name, value in FLAGS.items() if name != "served-model-name"} | {"max-model-len": 2048}
    command = [word for word in shlex.split(serve_command(args, str(policy))) if word not in without]
    return running(with_flags(["env", *command], flags), args.vllm_server_port, log)


class VllmServer:
    """A server that is on its way; `wait` before its first request."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.url, self.base_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/v1"
        self._process, self._log = process, log

    def wait(self, timeout_s: float = 900) -> None:
        """Until it is healthy: 40 s on an idle machine, minutes on a busy one."""
        started = time.monotonic()
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            tail = "\n".join(self._log.read_text().splitlines()[-20:])
            assert self._process.poll() is None, f"vLLM ended while it started:\n{tail}"
            assert time.monotonic() - started < timeout_s, f"vLLM is not ready after {timeout_s:g} s:\n{tail}"
            time.sleep(0.5)

    def prompt_tokens_computed(self) -> float:
        """What the engine had to prefill since it started: prompt tokens less those found in its prefix cache."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            metrics = answer.read().decode()
        return float(
            re.search(r'^vllm:prompt_tokens_by_source_total{.*source="local_compute".*} (\S+)$', metrics, re.MULTILINE)[1]
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def training_environment() -> dict[str, str]:
    """Of a training process with an engine. Another one may run at the same time, with torch's default port."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPO), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def with_flags(command: list[str], flags: dict[str, Any]) -> list[str]:
    """A flag that is True stands alone."""
    given = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in flags.items())
    return [*command, "--enforce-eager", *(part for parts in given for part in parts)]


@contextmanager
def serving(model: Path, log: Path, **changed: Any) -> Iterator[VllmServer]:
    """`python -m vllm.entrypoints.openai.api_server` for the `with` block, with some of `FLAGS` changed."""
    port = free_port()
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--trust-request-mm-kwargs"]
    command += ["--enable-prompt-tokens-details"]
    with running(with_flags(command, {**FLAGS, "model": model, "port": port, **changed}), port, log) as server:
        yield server


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[VllmServer]:
    """The server that `command` starts, for the `with` block; `python` in it is vLLM's. Nothing of another environment (its uv,
    say, which vLLM's `/server_info` would use) is on its PATH."""
    path = f"{PYTHON.parent}{os.pathsep}{os.defpath}"
    with (
        open(log, "w") as output,
        subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT, "PATH": path}, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield VllmServer(process, port, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    load_pretrain().main()

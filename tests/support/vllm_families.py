"""
Students of several families in the real vLLM, in one subprocess: most of a start is imports, whatever the model.

    .venv-vllm/bin/python -m tests.support.vllm_families OUTPUT.json '{"NAME": {"model": M, "url": U, "adapter": A}}'

Of each family: greedy texts about `requests` from an engine that training has given the weights; the differences between the
log-probabilities of vLLM and of training, at each step, with the engine in this process and, if there is a `url`, with the
server there; and, if there is an `adapter`, greedy texts with it. Of a family that vLLM only serves: greedy texts.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoProcessor
from trl import GRPOConfig

from sightsound.cli import InputError
from sightsound.data.audio import encode_flac
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.method.prompts import user_message
from sightsound.models.family import family_of, family_of_processor
from sightsound.training.vllm_rollouts import check_rollouts
from tests.support.vllm_training import Cases, exchange_clips, one_engine_for_all, sync_once


# Below and above the 30 s of a window of Whisper's; all that fits a prompt of `MAX_LENGTH` tokens.
LENGTHS_S = (0.5, 1.0, 2.0, 3.3, 7.7, 15.25, 29.99, 30.0, 30.01, 45.5)
NUM_CLIPS, MAX_LENGTH = 20, 2048
GREEDY = Sampling(n=1, temperature=0.0, max_tokens=24, seed=0)
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": MAX_LENGTH, "kv_cache_memory_bytes": 128 << 20}


def tone(i: int, length_s: float) -> np.ndarray:
    """A tone that wavers, in noise; each its own."""
    random, seconds = np.random.default_rng(i), np.arange(round(length_s * SAMPLING_RATE)) / SAMPLING_RATE
    wave = 0.4 * np.sin(2 * np.pi * random.uniform(100, 3000) * seconds * (1 + 0.3 * np.sin(seconds)))
    return (wave + 0.05 * random.normal(size=len(seconds))).astype(np.float32)


def requests() -> list[ChatRequest]:
    """Twenty questions, each about a clip of its own."""
    clips = [tone(i, LENGTHS_S[i % len(LENGTHS_S)]) for i in range(NUM_CLIPS)]
    return [ChatRequest(str(i), f"Question {i}: what is heard?", audio=clip) for i, clip in enumerate(clips)]


def questions() -> list[dict[str, Any]]:
    """Rows to train on: with a short clip, and with two of equal length, longer than a window of 30 s."""
    clips = [{"bytes": encode_flac(tone(i, length_s)), "path": f"{i}.flac"} for i, length_s in enumerate((3.3, 35.0, 35.0))]
    return [{"question": "What is heard?", "choices": ["dog", "bell", "drum", "siren"], "audio": clip} for clip in clips]


def greedy_texts(generate: Any, model: str, **options: Any) -> list[str]:
    """What vLLM's `generate` says of each of `requests`."""
    from vllm import SamplingParams

    processor = AutoProcessor.from_pretrained(model)
    family = family_of_processor(processor)
    prompts = [family.render(processor, user_message(each.text, "audio"), for_answer=True) for each in requests()]
    rows = [
        {"prompt": prompt, "multi_modal_data": {"audio": [(each.audio, SAMPLING_RATE)]}}
        for prompt, each in zip(prompts, requests(), strict=True)
    ]
    sampling = SamplingParams(temperature=GREEDY.temperature, max_tokens=GREEDY.max_tokens)
    return [answer.outputs[0].text for answer in generate(rows, sampling, use_tqdm=False, **options)]


def texts_after_sync(cases: Cases) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        rollouts = cases.trainer(folder).vllm_generation
        rollouts.sync_weights()
        return greedy_texts(rollouts._engine_generate, cases.checkpoint)


def texts_of_checkpoint(model: str, adapter: str | None = None) -> list[str]:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    if adapter is None:
        return greedy_texts(LLM(model, **ENGINE).generate, model)
    engine = LLM(model, enable_lora=True, max_lora_rank=8, **ENGINE)
    return greedy_texts(engine.generate, model, lora_request=LoRARequest("student", 1, adapter))


def sync_without_tower(trainer: Any) -> None:
    rollouts = trainer.vllm_generation
    weights = rollouts._iter_named_params
    rollouts._iter_named_params = lambda: ((name, weight) for name, weight in weights() if "audio_tower." not in name)


def run(model: str, url: str | None = None, adapter: str | None = None) -> dict[str, Any]:
    # A step that would let the model sample a clip's placeholder is too long: vLLM excludes it, and training does not.
    fields = {"vllm_mode": "colocate", "vllm_max_model_length": MAX_LENGTH, "learning_rate": 1e-4}
    colocate, of_equal_length = Cases(model, questions(), **fields), Cases(model, questions()[1:], **fields)
    config = AutoConfig.from_pretrained(model)
    if family_of(config).not_in_vllm:
        return {"texts": texts_of_checkpoint(model)}
    (architecture,) = config.architectures
    result: dict[str, Any] = {
        "refusals": [refusal(model, architecture), refusal(model, "FormerModel")],
        "full": colocate.train(),
        "lora": colocate.train(None, colocate.lora),
        "no_sync": colocate.train(sync_once),
        "no_tower": colocate.train(sync_without_tower),
        "other_clip": of_equal_length.train(exchange_clips),
        "texts": texts_after_sync(colocate),
    }
    if url is not None:
        fields |= {"vllm_mode": "server", "vllm_server_base_url": url, "vllm_server_timeout": 900}
        at_server = Cases(model, questions(), **fields)
        result |= {"server_full": at_server.train(), "server_no_sync": at_server.train(sync_once)}
    if adapter is not None:
        result["texts_with_adapter"] = texts_of_checkpoint(model, adapter)
    return result


def refusal(model: str, architecture: str) -> str | None:
    """What `check_rollouts` says of a checkpoint whose config names some architecture."""
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(Path(model, "config.json").read_text())
        Path(folder, "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
        try:
            check_rollouts(GRPOConfig(output_dir=folder, bf16=False, use_cpu=True, use_vllm=True, vllm_mode="colocate"), folder)
        except InputError as error:
            return str(error)
    return None


def main() -> None:
    output, families = sys.argv[1], json.loads(sys.argv[2])
    one_engine_for_all()
    results = {name: run(**given) for name, given in families.items()}
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()

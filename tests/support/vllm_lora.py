"""
Greedy answers of vLLM with an adapter and without. Runs as a subprocess, because vLLM has its own environment.

    .venv-vllm/bin/python -m tests.support.vllm_lora REQUESTS.npz MODEL [ADAPTER]

`REQUESTS.npz` holds the prompts, of one unexpanded placeholder each, and their clips. The last line of output is JSON: the
token ids of greedy answers, of `"model"` and of `"adapter"` on it.
"""

import json
import sys
import tomllib
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

from sightsound.data.schema import SAMPLING_RATE
from tests.support.tiny import REPO


def main() -> None:
    # vLLM does this by itself where the project is installed.
    plugins = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    EntryPoint("sightsound", plugins["sightsound"], "vllm.general_plugins").load()()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    file, model, *adapters = sys.argv[1:]
    with np.load(file) as content:
        prompts = json.loads(str(content["prompts"]))
        clips = [content[str(i)] for i in range(len(prompts))]
    requests: list[Any] = [
        {"prompt": prompt, "multi_modal_data": {"audio": [(clip, SAMPLING_RATE)]}}
        for prompt, clip in zip(prompts, clips, strict=True)
    ]
    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 32} if adapters else {}
    engine = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=16,
        kv_cache_memory_bytes=128 << 20,
        **options,
    )
    placeholder = engine.get_tokenizer().convert_tokens_to_ids("<|AUDIO|>")
    greedy = SamplingParams(temperature=0.0, max_tokens=16, logit_bias={placeholder: -100.0})
    adapters_of = {"model": None}
    if adapters:
        adapters_of["adapter"] = LoRARequest("student", 1, adapters[0])
    answers = {
        name: [list(a.outputs[0].token_ids) for a in engine.generate(requests, greedy, use_tqdm=False, lora_request=lora)]
        for name, lora in adapters_of.items()
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

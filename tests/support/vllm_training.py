"""
A few optimizer steps of `AudioGRPOTrainer` with rollouts of the real vLLM, in a subprocess: vLLM has its own environment.

    .venv-vllm/bin/python -m tests.support.vllm_training CHECKPOINT AVQA_AUDIO URL OUTPUT.json

All cases run with one engine in this process, then with the server at URL. `OUTPUT.json` gets, by mode and case, the largest
difference at each step between the log-probabilities of a sampled token under vLLM and under the trained model.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoProcessor
from trl import GRPOConfig
from trl.generation import vllm_generation

from sightsound.method.prompts import COT_PROMPT, question_text
from sightsound.models.family import family_of
from sightsound.training import grpo as grpo_trainer
from sightsound.training.grpo import AudioGRPOTrainer
from tests.support.tiny import read_rows


METRIC = "sampling/sampling_logp_difference/max"
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "temperature": 1.3,
    "beta": 0.0,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "shuffle_dataset": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_vllm": True,
    "vllm_max_model_length": 1024,
    "vllm_gpu_memory_utilization": 0.1,
}


def some_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Differs between the completions of random weights, so that there is something to learn from."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def one_engine_for_all() -> None:
    """Start one engine for all trainers of a model: every trainer begins by setting its weights."""
    start, engines = vllm_generation.LLM, {}

    def engine_of_all(**options: Any) -> Any:
        model = options["model"]
        if model not in engines:
            engines[model] = start(**options, kv_cache_memory_bytes=128 << 20)  # not a share of what others leave
        vars(engines[model]).pop("generate", None)  # set by the previous trainer
        return engines[model]

    vllm_generation.LLM = engine_of_all


class Cases:
    """
    Training of one checkpoint.

    Args:
        questions (`Sequence[dict]`): Rows of avqa-audio; the first two are asked.
        engine: Fields of `GRPOConfig`.
    """

    def __init__(self, checkpoint: str, questions: Sequence[dict[str, Any]], **engine: Any):
        self.checkpoint, self.engine = checkpoint, engine
        self.rows = [
            {
                "prompt": [{"role": "user", "content": question_text(row["question"], row["choices"], COT_PROMPT)}],
                "audio": row["audio"],
            }
            for row in list(questions)[:2] * 4  # the same clips in every step: a cache could answer for them
        ]
        targets = family_of(AutoConfig.from_pretrained(checkpoint)).lora_target_modules
        self.lora = LoraConfig(r=4, lora_alpha=32, target_modules=targets)

    def trainer(self, folder: str, peft_config: Any = None) -> AudioGRPOTrainer:
        return AudioGRPOTrainer(
            self.checkpoint,
            reward_funcs=[some_reward],
            args=GRPOConfig(output_dir=folder, **(SETTINGS | self.engine)),
            train_dataset=Dataset.from_list(self.rows),
            processing_class=AutoProcessor.from_pretrained(self.checkpoint),
            peft_config=peft_config,
        )

    def train(self, change: Callable[[AudioGRPOTrainer], None] | None = None, peft_config: Any = None) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(folder, peft_config)
            before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
            if change is not None:
                change(trainer)
            trainer.train()
        moved = [name for name, weight in trainer.model.named_parameters() if not torch.equal(before[name], weight)]
        assert any("lora_B" in name if peft_config else "audio_tower.layers" in name for name in moved), "no weight has changed"
        return [entry[METRIC] for entry in trainer.state.log_history if METRIC in entry]

    def different_completions(self) -> int:
        """How many of eight completions of one prompt differ."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(folder)
            rows = self.rows[:1] * 8
            trainer._cells = [row["audio"] for row in rows]
            trainer._audio = trainer._read_audio(trainer._cells)
            ids, *_ = trainer._tokenize_prompts([grpo_trainer.with_audio(row["prompt"]) for row in rows])
            completions, _ = trainer._generate_single_turn(ids, None, {}, 8)
        return len({tuple(ids) for ids in completions})

    def sampled_where_the_placeholder_is_likely(self) -> int:
        """How many of the sampled tokens are the clip's placeholder, for a model that would otherwise sample little else."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(folder)
            token, weight = trainer.model.config.audio_token_id, trainer.model.lm_head.weight
            with torch.no_grad():
                weight[token] *= -0.3  # `served.build_policy` makes it the least likely one
            trainer._cells = [row["audio"] for row in self.rows[:2]]
            trainer._audio = trainer._read_audio(trainer._cells)
            prompts = [grpo_trainer.with_audio(row["prompt"]) for row in self.rows[:2]]
            ids, *_ = trainer._tokenize_prompts(prompts)
            completions, _ = trainer._generate_single_turn(ids, None, {}, 1)
        return sum(ids.count(token) for ids in completions)


def sync_once(trainer: AudioGRPOTrainer) -> None:
    sync, done = trainer.vllm_generation.sync_weights, []

    def first_time_only() -> None:
        if not done:
            done.append(sync())

    trainer.vllm_generation.sync_weights = first_time_only


def keep_encoded_clips(trainer: AudioGRPOTrainer) -> None:
    """Undo our reset, as with TRL alone on a GPU; on a CPU also the worker's reset, which is part of vLLM's reload."""
    engine = trainer.vllm_generation.llm.llm_engine
    engine.reset_encoder_cache = lambda: None
    engine.model_executor.driver_worker.model_runner.reset_encoder_cache = lambda: None


def exchange_clips(trainer: AudioGRPOTrainer) -> None:
    generate = trainer.vllm_generation.generate
    trainer.vllm_generation.generate = lambda *, images, **options: generate(images=images[::-1], **options)


def main() -> None:
    checkpoint, dataset, url, output = sys.argv[1:]
    one_engine_for_all()
    questions = read_rows(Path(dataset))
    modes = {
        "colocate": Cases(checkpoint, questions, vllm_mode="colocate"),
        "server": Cases(checkpoint, questions, vllm_mode="server", vllm_server_base_url=url, vllm_server_timeout=900),
    }
    results: dict[str, dict[str, Any]] = {}
    for mode, cases in modes.items():
        results[mode] = {
            "full": cases.train(),
            "lora": cases.train(None, cases.lora),
            "full_no_sync": cases.train(sync_once),
            "lora_no_sync": cases.train(sync_once, cases.lora),
            "other_clip": cases.train(exchange_clips),
            "different": cases.different_completions(),
            "placeholders": cases.sampled_where_the_placeholder_is_likely(),
        }
        if mode == "colocate":  # last: the engine stays changed
            results[mode]["stale_clips"] = cases.train(keep_encoded_clips)
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()

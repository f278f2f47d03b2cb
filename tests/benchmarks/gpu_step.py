"""
Step time, tokens per second and peak memory of both recipes' trainers, on a model of the 7B's shape with random weights.

    python -m tests.benchmarks.gpu_step [--clip_s 10] [--num_new_tokens 200] [--steps 4] [--full] [--work_dir D]
    accelerate launch --config_file accelerate_configs/zero3.yaml -m tests.benchmarks.gpu_step --full --work_dir D

For a GPU of 80 GB, or several; nothing is downloaded, and 16 GB are written to `work_dir`. SFT trains a LoRA on 8 rows per step
and GPU, GRPO 4 prompts x 8 completions in micro-batches of 4, against the reference model: a LoRA, or with `--full` all
parameters, for which one GPU needs about 130 GB. The model's text is noise and never ends, so every completion has
`num_new_tokens`. `--tiny` takes a small model of the same architecture, on the CPU: it shows that the script runs.
The last line is JSON.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run


# Qwen/Qwen2-Audio-7B-Instruct, config.json.
AUDIO_7B = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128}
TEXT_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
AUDIO_TINY = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 128}
TEXT_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VOCABULARY_7B, VOCABULARY_TINY = 156_032, 2_048
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


@dataclass
class BenchmarkArguments:
    clip_s: float = field(default=10.0, metadata={"help": "length of the clips, at most 30 seconds"})
    num_new_tokens: int = field(default=200, metadata={"help": "per completion", "minimum": 4})
    steps: int = field(default=4, metadata={"help": "of each trainer, at least 2: the first is not counted"})
    full: bool = field(default=False, metadata={"help": "GRPO trains all parameters, as the paper does"})
    tiny: bool = field(default=False, metadata={"help": "a small model, on the CPU"})
    work_dir: str | None = field(default=None, metadata={"help": "where the model is written (default: a temporary folder)"})


def build_model(folder: Path, tiny: bool) -> None:
    """Write a Qwen2-Audio with random weights and its processor, unless it is there."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    from sightsound.training.checkpoints import save_checkpoint
    from sightsound.training.distributed import without_zero3_init
    from tests.support.tiny import REPO

    if folder.exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(REPO / "recipes" / "miniature" / "tokenizer")
    audio, text = (AUDIO_TINY, TEXT_TINY) if tiny else (AUDIO_7B, TEXT_7B)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    vocabulary = VOCABULARY_TINY if tiny else VOCABULARY_7B
    heads = {"num_key_value_heads": text["num_attention_heads"]}
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "max_source_positions": 1500, **audio},
        text_config={"model_type": "qwen2", "vocab_size": vocabulary, **text, **heads, **ids},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    with without_zero3_init(), torch.device("cpu" if tiny else "cuda"):
        default, _ = torch.get_default_dtype(), torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
        model = Qwen2AudioForConditionalGeneration(config)
        torch.set_default_dtype(default)
        extractor = WhisperFeatureExtractor(feature_size=128)
        save_checkpoint(model, Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer), folder)
    del model
    if not tiny:
        torch.cuda.empty_cache()


def make_rows(count: int, clip_s: float, num_new_tokens: int) -> list[dict[str, Any]]:
    """Questions about noise, each with its own clip, and a target of about `num_new_tokens`."""
    import numpy as np

    from sightsound.data.audio import encode_flac
    from sightsound.method.prompts import COT_PROMPT, question_text, render_trace

    draw = np.random.default_rng(0)
    choices = ["a dog barks", "a siren wails", "a bell rings", "a drum is beaten"]
    think = "I hear a dog and a bell. " * max(1, num_new_tokens // 8)
    return [
        {
            "id": str(i),
            "prompt": [{"role": "user", "content": question_text(f"What is heard in clip {i}?", choices, COT_PROMPT)}],
            "completion": render_trace(think, choices[0]),
            "audio": {"bytes": encode_flac(draw.normal(0, 0.1, round(clip_s * 16_000)).astype(np.float32)), "path": None},
            "teacher_answer": 0,
            "choices": choices,
        }
        for i in range(count)
    ]


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Differs between completions of noise, so that there are gradients."""
    return [float(sum(map(ord, completion[0]["content"])) % 3) for completion in completions]


def measure(trainer: Any) -> dict[str, float]:
    """Train, and tell the medians of the steps but the first, and the most memory that this process used."""
    import resource

    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    log = [entry for entry in trainer.state.log_history if "num_tokens" in entry]
    tokens = [after["num_tokens"] - before["num_tokens"] for before, after in pairwise(log)]
    step_s = statistics.median(after - before for before, after in pairwise(ends))
    parts = {name: statistics.median(entry[f"time/{name}"] for entry in log[1:]) for name in PARTS if f"time/{name}" in log[0]}
    return {"step_s": step_s, "tokens_per_s": statistics.median(tokens) / step_s, "peak_gib": peak, **parts}


PARTS = ("rollout_s", "score_s", "train_s")


def settings_of(args: BenchmarkArguments, folder: Path) -> dict[str, Any]:
    """What both trainers have in common; as in recipes/qwen2_audio_7b."""
    on_gpu = {"bf16": True, "gradient_checkpointing": True}
    on_cpu: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True}
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":  # `use_cpu` would leave it out
        on_cpu |= {"use_cpu": False, "ddp_backend": "gloo"}
    return {
        "output_dir": str(folder / "run"),
        "max_steps": args.steps,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **(on_cpu if args.tiny else on_gpu),
    }


def sft(args: BenchmarkArguments, model: Path, folder: Path) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoProcessor
    from trl import SFTConfig
    from trl.trainer.utils import create_model_from_path

    from sightsound.training.collator import CompletionCollator
    from sightsound.training.distributed import on_main_process
    from sightsound.training.sft import AudioSFTTrainer

    rows_per_step = 2 if args.tiny else 8
    training_args = SFTConfig(
        per_device_train_batch_size=rows_per_step,
        max_length=2048,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings_of(args, folder),
    )
    on_main_process(lambda: build_model(model, args.tiny))
    processor = AutoProcessor.from_pretrained(model)
    rows = make_rows(rows_per_step * args.steps * training_args.world_size, args.clip_s, args.num_new_tokens)
    trainer = AudioSFTTrainer(
        model=create_model_from_path(str(model), dtype="float32" if args.tiny else "bfloat16", device_map=None),
        args=training_args,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        data_collator=CompletionCollator(processor, training_args.max_length),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"),
    )
    return measure(trainer)


def grpo(args: BenchmarkArguments, model: Path, folder: Path) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoProcessor
    from trl import GRPOConfig

    from sightsound.training.grpo import AudioGRPOTrainer

    training_args = GRPOConfig(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2 if args.tiny else 8,
        num_generations=4 if args.tiny else 8,
        max_completion_length=args.num_new_tokens,
        beta=0.04,
        loss_type="grpo",
        model_init_kwargs={"dtype": "float32" if args.tiny else "bfloat16"},
        **settings_of(args, folder),
    )
    prompts_per_step = training_args.generation_batch_size // training_args.num_generations
    trainer = AudioGRPOTrainer(
        str(model),
        reward_funcs=reward,
        args=training_args,
        train_dataset=Dataset.from_list(make_rows(prompts_per_step * args.steps, args.clip_s, args.num_new_tokens)),
        processing_class=AutoProcessor.from_pretrained(model),
        peft_config=None if args.full else LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"),
    )
    return measure(trainer)


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    if args.steps < 2:
        raise InputError(f"--steps {args.steps}: the first step warms up and is not counted; give 2 or more")
    import gc

    import torch

    from sightsound.training.distributed import is_main_process

    if not args.tiny and not torch.cuda.is_available():
        raise InputError("there is no GPU here; --tiny runs a small model on the CPU")
    if args.clip_s > 30:
        raise InputError(f"--clip_s {args.clip_s}: the model hears 30 seconds")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args.work_dir is None:
        raise InputError("several processes read one model: give --work_dir")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_dir or temporary)
        model = folder / ("tiny" if args.tiny else "7b")
        figures = {}
        for name, trainer in (("sft", sft), ("grpo", grpo)):
            figures[name] = trainer(args, model, folder)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if is_main_process():
        for name, found in figures.items():
            print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        message = {name: {key: round(value, 3) for key, value in found.items()} for name, found in figures.items()}
        print(json.dumps({"device": device, "processes": int(os.environ.get("WORLD_SIZE", "1")), "full": args.full, **message}))


if __name__ == "__main__":
    run(main)

"""
Step time, tokens per second and peak memory of both recipes' trainers, on a model of the 7B's shape with random weights.

    python -m tests.benchmarks.gpu_step [--family qwen2_5_omni] [--clip_s 10] [--num_new_tokens 200] [--steps 4] [--full]
    accelerate launch --config_file accelerate_configs/zero3.yaml -m tests.benchmarks.gpu_step --full --work_dir D

For a GPU of 80 GB, or several; nothing is downloaded, and 18 GB are written to `work_dir`. SFT trains a LoRA on 8 rows per step
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
from tests.support.shapes import RELEASED, WINDOW_S, Shape, make_model, tiny_shape


@dataclass
class BenchmarkArguments:
    family: str = field(default="qwen2_audio", metadata={"help": "of the student", "choices": list(RELEASED)})
    clip_s: float = field(default=10.0, metadata={"help": "length of the clips"})
    num_new_tokens: int = field(default=200, metadata={"help": "per completion", "minimum": 4})
    steps: int = field(default=4, metadata={"help": "of each trainer, at least 2: the first is not counted"})
    full: bool = field(default=False, metadata={"help": "GRPO trains all parameters, as the paper does"})
    tiny: bool = field(default=False, metadata={"help": "a small model, on the CPU"})
    work_dir: str | None = field(default=None, metadata={"help": "where the model is written (default: a temporary folder)"})


def build_model(folder: Path, shape: Shape, on_gpu: bool) -> None:
    """Write a student with random weights and its processor, unless it is there."""
    import torch

    from sightsound.training.checkpoints import save_checkpoint
    from sightsound.training.distributed import without_zero3_init

    if folder.exists():
        return
    with without_zero3_init(), torch.device("cuda" if on_gpu else "cpu"):
        default, _ = torch.get_default_dtype(), torch.set_default_dtype(torch.bfloat16 if on_gpu else torch.float32)
        model, processor = make_model(shape)
        torch.set_default_dtype(default)
        save_checkpoint(model, processor, folder)
    del model
    if on_gpu:
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
    from transformers import AutoProcessor
    from trl import SFTConfig
    from trl.trainer.utils import create_model_from_path

    from sightsound.models.loading import student_class
    from sightsound.training.collator import CompletionCollator
    from sightsound.training.distributed import on_main_process
    from sightsound.training.sft import AudioSFTTrainer

    rows_per_step = 2 if args.tiny else 8
    training_args = SFTConfig(
        per_device_train_batch_size=rows_per_step,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings_of(args, folder),
    )
    shape = tiny_shape(args.family) if args.tiny else RELEASED[args.family]
    on_main_process(lambda: build_model(model, shape, on_gpu=not args.tiny))
    processor = AutoProcessor.from_pretrained(model)
    rows = make_rows(rows_per_step * args.steps * training_args.world_size, args.clip_s, args.num_new_tokens)
    trainer = AudioSFTTrainer(
        model=create_model_from_path(
            str(model), student_class(str(model)), dtype="float32" if args.tiny else "bfloat16", device_map=None
        ),
        args=training_args,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        data_collator=CompletionCollator(processor, training_args.max_length),
        peft_config=lora(processor),
    )
    return measure(trainer)


def lora(processor: Any) -> Any:
    """Of the recipes, on the modules that the family names."""
    from peft import LoraConfig

    from sightsound.models.family import family_of_processor

    targets = family_of_processor(processor).lora_target_modules
    return LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")


def grpo(args: BenchmarkArguments, model: Path, folder: Path) -> dict[str, float]:
    from datasets import Dataset
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
    processor = AutoProcessor.from_pretrained(model)
    trainer = AudioGRPOTrainer(
        str(model),
        reward_funcs=reward,
        args=training_args,
        train_dataset=Dataset.from_list(make_rows(prompts_per_step * args.steps, args.clip_s, args.num_new_tokens)),
        processing_class=processor,
        peft_config=None if args.full else lora(processor),
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
    if args.clip_s > WINDOW_S[args.family]:
        raise InputError(f"--clip_s {args.clip_s}: the model takes in {WINDOW_S[args.family]} seconds")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args.work_dir is None:
        raise InputError("several processes read one model: give --work_dir")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_dir or temporary)
        model = folder / f"{args.family}-{'tiny' if args.tiny else '7b'}"
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

"""Trainers of the tiny student."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration
from trl import GRPOConfig, SFTConfig

from sightsound.method.prompts import COT_PROMPT, DIRECT_PROMPT, question_text
from sightsound.method.rewards import accuracy_reward, format_reward
from sightsound.method.selection import gold_labels
from sightsound.training.collator import CompletionCollator
from sightsound.training.grpo import AudioGRPOTrainer
from sightsound.training.sft import AudioSFTTrainer
from sightsound.training.validation import ValidationSet


def some_reward(completions: list[Any], **_: Any) -> list[float]:
    """Differs between the completions of random weights, so that there is something to learn from."""
    return [float(len(completion[0]["content"]) % 3) for completion in completions]


def make_rows(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "prompt": [{"role": "user", "content": question_text(row["question"], row["choices"], COT_PROMPT)}],
            "audio": row["audio"],
            "teacher_answer": row["answer"],
            "choices": row["choices"],
        }
        for row in questions[:4]
    ]


def make_trainer(
    checkpoint: Path,
    rows: list[dict[str, Any]],
    output_dir: Path,
    rewards: Sequence[Any] = (some_reward, format_reward, accuracy_reward),
    peft_config: LoraConfig | None = None,
    share_prompts: bool = True,
    freeze_audio_tower: bool = False,
    **changed: Any,
) -> AudioGRPOTrainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "beta": 0.04,
        "loss_type": "grpo",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    args = GRPOConfig(output_dir=str(output_dir), **(settings | changed))
    processor = AutoProcessor.from_pretrained(checkpoint)
    return AudioGRPOTrainer(
        str(checkpoint),
        reward_funcs=list(rewards),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        peft_config=peft_config,
        share_prompts=share_prompts,
        freeze_audio_tower=freeze_audio_tower,
    )


LORA = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def settings(output: Path, **changed: Any) -> dict[str, Any]:
    common = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "weight_decay": 0.0, "seed": 0, "disable_tqdm": True}
    common |= {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "logging_steps": 1}
    return {"output_dir": str(output), **common, "save_strategy": "no", **changed}


def sft_trainer(checkpoint: Path, questions: list[dict[str, Any]], output: Path, **changed: Any) -> AudioSFTTrainer:
    """Memorises the answers to four questions; the same four, after these one that nobody taught, are its validation set."""
    changed = settings(output, per_device_train_batch_size=4, **changed)
    args = SFTConfig(**changed, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True})
    processor = AutoProcessor.from_pretrained(checkpoint)
    rows = [{**row, "audio": question["audio"]} for row, question in zip(gold_labels(questions), questions, strict=True)]
    validation = ValidationSet(Dataset.from_list(questions[:5]), DIRECT_PROMPT, batch_size=2, max_tokens=12)
    return AudioSFTTrainer(
        model=Qwen2AudioForConditionalGeneration.from_pretrained(checkpoint),
        args=args,
        train_dataset=Dataset.from_list(rows[:4]),
        validation=validation,
        processing_class=processor,
        data_collator=CompletionCollator(processor),
        peft_config=LoraConfig(r=32, lora_alpha=64, lora_dropout=0.1, target_modules=LORA),
    )

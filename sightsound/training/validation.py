"""
The best checkpoint by validation accuracy: questions are answered by greedy generation and graded by the project's grader.

The paper selects the best checkpoint of both stages by validation accuracy. `Trainer` compares losses instead: GRPO's
evaluation has none, and a loss says little about answers. `Trainer` also loads nothing of the best full-parameter checkpoint
of an audio model (see `checkpoints.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.data.audio import decode_audio
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.transformers import TransformersEngine
from sightsound.method.answers import is_correct, parse_answer
from sightsound.method.prompts import question_text
from sightsound.training.checkpoints import load_full_weights


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments
else:
    Trainer = object  # a mixin's base, for the type checker only

METRIC = "eval_accuracy"


@dataclass
class ValidationSet:
    """
    The questions that every checkpoint of a run answers.

    Args:
        rows (`Dataset`): Of avqa-audio, audio undecoded; their `answer` is the ground truth of the *validation* split.
        prompt (`str`): The prompt that each question is filled into, the same as in training.
        batch_size (`int`): Questions that a process answers at once.
        max_tokens (`int`): Maximum number of tokens of one answer.
    """

    rows: Dataset
    prompt: str
    batch_size: int
    max_tokens: int

    def count(self, model: Any, processor: Any, positions: Sequence[int]) -> tuple[int, int]:
        """
        Answer the rows at `positions`.

        Returns:
            `tuple[int, int]`: The number of correct answers, and the number of outputs without an answer.
        """
        import torch

        sampling = Sampling(1, 0.0, self.max_tokens, 0)
        engine = TransformersEngine(model, processor, self.batch_size, sampling)
        correct = unanswered = 0
        for start in range(0, len(positions), self.batch_size):
            rows = [self.rows[i] for i in positions[start : start + self.batch_size]]
            requests = [
                ChatRequest(
                    row["id"],
                    question_text(row["question"], row["choices"], self.prompt),
                    audio=decode_audio(row["audio"], engine.window_s).waveform,
                )
                for row in rows
            ]
            # Evaluation must not change the random numbers of training. Only this process's device: a rank may see all of them.
            devices = [model.device] if model.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                (results,) = engine.complete(requests, sampling)
            for row, result in zip(rows, results, strict=True):
                answer = parse_answer(result.completions[0].text, row["choices"])
                correct += is_correct(answer, row["answer"], row["choices"])
                unanswered += answer.index is None
        return correct, unanswered


def evenly_spaced(rows: Dataset, num_validation: int) -> Dataset:
    """`num_validation` questions spread over the split, whatever its order."""
    if num_validation > len(rows):
        raise InputError(f"num_validation {num_validation}: the split has {len(rows)} questions; give at most that many")
    return rows.select([i * len(rows) // num_validation for i in range(num_validation)])


def check_evaluation(script_args: Any, training_args: TrainingArguments) -> None:
    """
    Raises:
        `InputError`: Early stopping without evaluation, evaluation under FSDP, or a best checkpoint by another metric.
    """
    if training_args.eval_strategy == "no":
        if script_args.early_stopping_patience is not None:
            raise InputError("early_stopping_patience needs evaluations: set eval_strategy: steps and eval_steps")
        return
    if training_args.distributed_state.distributed_type.value == "FSDP":
        # Each forward gathers weights from all processes, and their answers have different lengths.
        raise InputError(
            "evaluation does not work under FSDP: the processes would wait for each other forever; use "
            "accelerate_configs/zero3.yaml, or set eval_strategy: no and load_best_model_at_end: false"
        )
    # "loss" is what transformers fills in.
    if training_args.metric_for_best_model not in (None, "loss", METRIC):
        found = training_args.metric_for_best_model
        raise InputError(f"metric_for_best_model: {found}: set it to {METRIC}, the only metric that evaluation measures here")


def validation_set(script_args: Any, training_args: TrainingArguments, prompt: str) -> ValidationSet | None:
    """
    The validation questions; None with `eval_strategy: no`. Sets the metric of the best model in `training_args`.

    Raises:
        `InputError`: `check_evaluation` refused the settings, or the split has fewer questions than `num_validation`.
    """
    from sightsound.data.kinds import CLIPS, open_input

    check_evaluation(script_args, training_args)
    if training_args.eval_strategy == "no":
        return None
    training_args.metric_for_best_model, training_args.greater_is_better = METRIC, True
    training_args.restore_callback_states_from_checkpoint = True  # early stopping keeps its count
    rows = open_input(script_args.audio, script_args.validation_split, CLIPS)
    chosen = evenly_spaced(rows, script_args.num_validation)
    return ValidationSet(chosen, prompt, training_args.per_device_eval_batch_size, script_args.validation_max_tokens)


def early_stopping(script_args: Any) -> list[TrainerCallback]:
    """The callback that `early_stopping_patience` asks for; an empty list without it."""
    from transformers import EarlyStoppingCallback

    patience = script_args.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


class BestByAccuracy(Trainer):
    """
    Mix into a `Trainer`, before it: `evaluate` answers the validation questions, `load_best_model_at_end` loads every weight.

    Each process answers its share of the questions with its own model, also where a vLLM server samples for GRPO.

    Args:
        validation (`ValidationSet`, *optional*): Without one, `evaluate` is the trainer's own.
    """

    def __init__(self, *args: Any, validation: ValidationSet | None = None, **kwargs: Any):
        self.validation = validation
        if validation is not None:
            kwargs["eval_dataset"] = validation.rows  # `Trainer` requires one with `eval_strategy`; `evaluate` does not use it
        super().__init__(*args, **kwargs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        import torch
        from trl.models import unwrap_model_for_generation

        accelerator = self.accelerator
        if self.validation is None:
            return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total = len(self.validation.rows)
        share = range(accelerator.process_index, total, accelerator.num_processes)
        was_training = self.model.training
        checkpointing = self.args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(self.model_wrapped, accelerator, gradient_checkpointing_kwargs=checkpointing) as model:
            model.eval()
            counts = self.validation.count(model, self.processing_class, share)
        correct, unanswered = accelerator.reduce(torch.tensor(counts, device=accelerator.device)).tolist()
        metrics = {f"{metric_key_prefix}_accuracy": correct / total, f"{metric_key_prefix}_unanswered": unanswered / total}
        # Logged while the model is in eval mode: in train mode TRL would add its training metrics, and clear them.
        self.log(metrics)
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def _load_best_model(self) -> None:
        from peft import PeftModel

        model = self.model
        if isinstance(model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            load_full_weights(model, self.state.best_model_checkpoint)

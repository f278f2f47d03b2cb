"""
The best checkpoint by validation accuracy: questions answered by generation, graded by the project's grader.

The paper selects the best checkpoints of both stages so. `Trainer` would compare losses, which GRPO's evaluation does not have
and which say little of answers; and it loads nothing of an audio model's best full-parameter checkpoint (see `checkpoints.py`).
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

METRIC = "eval_accuracy"


@dataclass
class ValidationSet:
    """
    Questions that a checkpoint is judged by, always the same ones.

    Args:
        rows (`Dataset`): Of avqa-audio, audio undecoded; its `answer` is the ground truth of the *validation* split.
        instruction (`str`): How they are asked; as in training.
        batch_size (`int`): Questions answered at once, per process.
        max_tokens (`int`): Per answer.
    """

    rows: Dataset
    instruction: str
    batch_size: int
    max_tokens: int

    @classmethod
    def evenly_spaced(cls, dataset: Dataset, size: int, instruction: str, batch_size: int, max_tokens: int) -> ValidationSet:
        """`size` questions spread over the split, whatever its order."""
        if size > len(dataset):
            raise InputError(f"num_validation {size}: the split has {len(dataset)} questions; give at most that many")
        rows = dataset.select([i * len(dataset) // size for i in range(size)])
        return cls(rows, instruction, batch_size, max_tokens)

    def count(self, model: Any, processor: Any, positions: Sequence[int]) -> tuple[int, int]:
        """How many of the rows at `positions` are answered right, and how many are not answered: greedy, without a draw."""
        import torch

        sampling = Sampling(1, 0.0, self.max_tokens, 0)
        engine = TransformersEngine(model, processor, self.batch_size, sampling)
        right = unanswered = 0
        for start in range(0, len(positions), self.batch_size):
            rows = [self.rows[i] for i in positions[start : start + self.batch_size]]
            requests = [
                ChatRequest(
                    row["id"],
                    question_text(row["question"], row["choices"], self.instruction),
                    audio=decode_audio(row["audio"], engine.window_s).waveform,
                )
                for row in rows
            ]
            # Training goes on with the draws that it would have had. Only this process's device: a rank may see all of them.
            devices = [model.device] if model.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                (results,) = engine.complete(requests, sampling)
            for row, result in zip(rows, results, strict=True):
                answer = parse_answer(result.completions[0].text, row["choices"])
                right += is_correct(answer, row["answer"], row["choices"])
                unanswered += answer.index is None
        return right, unanswered


class BestByAccuracy:
    """
    Mix into a `Trainer`, before it: `evaluate` answers `validation`, and `load_best_model_at_end` loads every weight.

    Each process answers its share of the questions, in this process and not on a vLLM server that samples for GRPO.
    """

    validation: ValidationSet | None = None

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        import torch
        from trl.models import unwrap_model_for_generation

        accelerator = self.accelerator  # type: ignore[attr-defined]
        if self.validation is None:
            return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        total = len(self.validation.rows)
        share = range(accelerator.process_index, total, accelerator.num_processes)
        was_training = self.model.training  # type: ignore[attr-defined]
        checkpointing = self.args.gradient_checkpointing_kwargs  # type: ignore[attr-defined]
        with unwrap_model_for_generation(
            self.model_wrapped,  # type: ignore[attr-defined]
            accelerator,
            gradient_checkpointing_kwargs=checkpointing,
        ) as model:
            model.eval()
            counts = self.validation.count(model, self.processing_class, share)  # type: ignore[attr-defined]
        right, unanswered = accelerator.reduce(torch.tensor(counts, device=accelerator.device)).tolist()
        metrics = {f"{metric_key_prefix}_accuracy": right / total, f"{metric_key_prefix}_unanswered": unanswered / total}
        # Before the model trains again: TRL would add what training has gathered, and forget it.
        self.log(metrics)  # type: ignore[attr-defined]
        self.model.train(was_training)  # type: ignore[attr-defined]
        self.control = self.callback_handler.on_evaluate(  # type: ignore[attr-defined]
            self.args,  # type: ignore[attr-defined]
            self.state,  # type: ignore[attr-defined]
            self.control,  # type: ignore[has-type]
            metrics,
        )
        return metrics

    def _load_best_model(self) -> None:
        from peft import PeftModel

        model = self.model  # type: ignore[attr-defined]
        if isinstance(model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:  # type: ignore[attr-defined]
            super()._load_best_model()  # type: ignore[misc]
        else:
            load_full_weights(model, self.state.best_model_checkpoint)  # type: ignore[attr-defined]

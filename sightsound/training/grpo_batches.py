"""How many questions GRPO needs before it can take one step, and which settings make it fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightsound.cli import InputError


if TYPE_CHECKING:
    from trl import GRPOConfig


def check_fills_a_batch(num_questions: int, training_args: GRPOConfig) -> None:
    """
    TRL samples `generation_batch_size` completions at once, `num_generations` to a question, and drops the rest of the
    questions: with fewer than one such batch it would train on none.

    Raises:
        `InputError`: There are too few; the message has settings with which there are enough.
    """
    completions, per_question = training_args.generation_batch_size, training_args.num_generations
    needed = completions // per_question
    if num_questions >= needed:
        return
    processes, rows = training_args.world_size, training_args.per_device_train_batch_size
    has = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": training_args.gradient_accumulation_steps,
        "steps_per_generation": training_args.steps_per_generation,
        "num_generations": per_question,
    }
    settings = ", ".join(f"{name} {value}" for name, value in has.items())
    raise InputError(
        f"{num_questions} questions do not fill one batch of {needed} ({settings}, {processes} process(es)), and "
        f"TRL would train on none; {_remedy(num_questions, processes, rows, per_question)}"
    )


def _remedy(num_questions: int, processes: int, rows: int, per_question: int) -> str:
    """Settings that as many questions as possible share a step with; the batch of a device as large as it was, if it can be."""
    most = num_questions * per_question
    for batch in range(min(rows, most // processes), 0, -1):
        for steps in range(most // (processes * batch), 0, -1):
            if (processes * batch * steps) % per_question == 0:
                fitting = f"per_device_train_batch_size: {batch} and gradient_accumulation_steps: {steps}"
                others = "without steps_per_generation and generation_batch_size"
                return f"set {fitting} ({others}), or trace more questions"
    return f"start at most {most} processes (--num_processes), or trace more questions"

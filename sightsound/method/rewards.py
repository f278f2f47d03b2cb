"""The two rewards of the paper (section 3.3), as TRL reward functions. Both ask the project's grader."""

from collections.abc import Callable, Sequence
from typing import Any

from sightsound.method.answers import has_trace_format, is_correct, parse_answer


def _text(completion: str | list[dict[str, Any]]) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def accuracy_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    teacher_answer: Sequence[int],
    choices: Sequence[Sequence[str]],
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float]:
    """
    +1 when the answer is the *teacher's*; the student never sees a ground-truth label.

    Args:
        completions: One per sampled output, as text or as a conversational completion.
        teacher_answer (`Sequence[int]`): Index of the teacher's choice, per output.
        choices: The choices, per output.
        log_metric: TRL's: gets `unanswered`, the share of outputs without an answer, which a reward of 0 does not tell apart.
    """
    answers = [parse_answer(_text(c), options) for c, options in zip(completions, choices, strict=True)]
    if log_metric is not None:
        log_metric("unanswered", sum(answer.index is None for answer in answers) / len(answers))
    rows = zip(answers, teacher_answer, choices, strict=True)
    return [float(is_correct(answer, gold, options)) for answer, gold, options in rows]


def format_reward(completions: Sequence[str | list[dict[str, Any]]], **_: Any) -> list[float]:
    """+1 when the output is `<think>...</think><answer>...</answer>` and nothing else."""
    return [float(has_trace_format(_text(completion))) for completion in completions]


def without_reward(log: Sequence[dict[str, Any]]) -> str | None:
    """
    What a GRPO run says when it ends without any reward.

    Args:
        log (`Sequence[dict]`): The trainer's `log_history`: TRL logs the mean of each reward function.

    Returns:
        `str` or `None`: None when some completion got the teacher's answer, or when nothing was logged.
    """
    means = {
        name: [entry[f"rewards/{name}/mean"] for entry in log if f"rewards/{name}/mean" in entry]
        for name in (accuracy_reward.__name__, format_reward.__name__)
    }
    accuracy, formats = means.values()
    if not accuracy or any(accuracy):
        return None
    earned = "only format rewards were earned" if any(formats) else "nor was any format reward"
    return (
        f"WITHOUT REWARD: in no logged step was any accuracy reward earned, {earned}: this model has learned nothing of the "
        "teacher's answers. Look at the completions (log_completions: true) and at the checkpoint that training started from"
    )

"""
The rewards of GRPO, as TRL reward functions (paper, section 3.3). Both of the paper's call the project's one grader.

Each function here whose name ends in `_reward` can be named in `reward_funcs` of a recipe's YAML, and weighted there with TRL's
`reward_weights`: to add a reward, add a function. TRL calls it with the completions and, by name, every other column of the
rows (`teacher_answer`, `choices`, `id`), and logs its mean as `rewards/<name>/mean`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sightsound.cli import InputError
from sightsound.method.answers import has_trace_format, is_correct, parse_answer


PAPER_REWARDS = ("accuracy_reward", "format_reward")

Completion = str | list[dict[str, Any]]  # a text, or a conversational completion


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def accuracy_reward(
    completions: Sequence[Completion],
    teacher_answer: Sequence[int],
    choices: Sequence[Sequence[str]],
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float]:
    """
    1 when the answer is the *teacher's*; the student never sees a ground-truth label.

    Args:
        completions: The sampled outputs.
        teacher_answer (`Sequence[int]`): Index of the teacher's choice, per output.
        choices: The choices, per output.
        log_metric: From TRL. Logs `unanswered`, the share of outputs without an answer: a wrong answer has reward 0 too.
    """
    answers = [parse_answer(_text(c), options) for c, options in zip(completions, choices, strict=True)]
    if log_metric is not None:
        log_metric("unanswered", sum(answer.index is None for answer in answers) / len(answers))
    rows = zip(answers, teacher_answer, choices, strict=True)
    return [float(is_correct(answer, gold, options)) for answer, gold, options in rows]


def format_reward(completions: Sequence[Completion], **_: Any) -> list[float]:
    """1 when the output is `<think>...</think><answer>...</answer>` and nothing else."""
    return [float(has_trace_format(_text(completion))) for completion in completions]


def find_rewards(names: Sequence[str], weights: Sequence[float] | None = None) -> list[Callable[..., list[float]]]:
    """
    The reward functions that a recipe names.

    Args:
        names (`Sequence[str]`): `reward_funcs`.
        weights (`Sequence[float]`, *optional*): `reward_weights`, one per name.

    Raises:
        `InputError`: A name is unknown or given twice, there is none, or there is not one weight per name.
    """
    known = {name: function for name, function in globals().items() if name.endswith("_reward")}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"reward_funcs: unknown reward '{unknown[0]}'; expected one or more of {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"reward_funcs: {list(names)}; expected one or more of {', '.join(known)}, each once")
    if weights is not None and len(weights) != len(names):
        raise InputError(f"reward_weights has {len(weights)} numbers for {len(names)} reward_funcs; give one for each")
    return [known[name] for name in names]


def no_reward_warning(log: Sequence[dict[str, Any]]) -> str | None:
    """
    The warning at the end of a GRPO run that never earned the accuracy reward.

    Args:
        log (`Sequence[dict]`): The trainer's `log_history`, with the mean of each reward function.

    Returns:
        `str` or `None`: None when some completion got the teacher's answer, or when no accuracy reward was logged.
    """
    means: dict[str, list[float]] = {}
    for entry in log:
        for key, value in entry.items():
            if key.startswith("rewards/") and key.endswith("/mean"):
                means.setdefault(key.split("/")[1], []).append(value)
    accuracy = means.pop(accuracy_reward.__name__, [])
    if not accuracy or any(accuracy):
        return None
    earned = ", ".join(name for name, values in means.items() if any(values)) or "no other reward"
    return (
        f"WITHOUT REWARD: no logged step earned any accuracy reward ({earned} was earned): this model has learned nothing "
        "from the teacher's answers. Look at the completions (log_completions: true) and at the starting checkpoint"
    )

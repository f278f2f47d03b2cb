"""
Score reasoning by a rubric, as MMAR-Rubrics does (arXiv 2602.14224): a judge decides each criterion of the question's rubric.

A judge is asked `NUM_RUNS` times about each reasoning. Of the scores, from 0 to 1, the lowest and the highest are left out, and
the mean of the others counts. Reasoning whose answer is wrong scores 0 and is shown to no judge. The words of the request are
ours, not those of the published script, so the version of the prompt is part of a figure's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


NUM_RUNS = 5
UNREADABLE = "unreadable"  # outcome of a reply that is no list of points for the rubric

Criterion = Mapping[str, Any]  # `name`, `scoring_point`, `choices` (the points that can be given)


def write_request(
    prompt: str, *, question: str, answer: str, reference: str, rubric: Sequence[Criterion], reasoning: str, predicted: str
) -> str:
    """
    The text of a request to the judge.

    Args:
        prompt (`str`): With the fields `JUDGE_FIELDS` of `prompts.py`.
        answer (`str`): The right one.
        reference (`str`): How the benchmark's authors reach it.
        reasoning (`str`), predicted (`str`): The model's.
    """
    criteria = [
        f"{i}. {criterion['name']} ({' or '.join(map(str, criterion['choices']))} points): {criterion['scoring_point']}"
        for i, criterion in enumerate(rubric, start=1)
    ]
    return prompt.format(
        question=question.strip(),
        answer=answer.strip(),
        reference=reference.strip() or "not given",
        reasoning=reasoning.strip() or "(nothing)",
        predicted=predicted.strip(),
        criteria="\n".join(criteria),
    )


def read_score(reply: str, rubric: Sequence[Criterion]) -> float | None:
    """
    The score in a judge's reply: its points as a share of all points of the rubric.

    The list may stand after a closed `<think>` block, in a code fence or in an object. Points count by their place in the list.

    Returns:
        `float` or `None`: None for a reply that is cut, has another number of criteria, or gives a point that none allows.
    """
    body = reply.rpartition("</think>")[2]
    start, end = body.find("["), body.rfind("]")
    try:
        given = json.loads(body[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, list) or len(given) != len(rubric):
        return None
    points: list[Any] = [each.get("score") if isinstance(each, dict) else None for each in given]
    for each, criterion in zip(points, rubric, strict=True):
        if isinstance(each, bool) or not isinstance(each, int | float) or each not in criterion["choices"]:
            return None
    return float(sum(points) / sum(max(criterion["choices"]) for criterion in rubric))


def middle_mean(scores: Sequence[float]) -> float:
    """The mean without the lowest and the highest of at least three scores."""
    middle = sorted(scores)[1:-1]
    return sum(middle) / len(middle)

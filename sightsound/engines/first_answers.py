"""Stop a teacher run early when its first answers hold no reasoning."""

from __future__ import annotations

from itertools import islice
from typing import Any

from sightsound.cli import InputError
from sightsound.method.answers import extract_think
from sightsound.stage import Journal


NUM_FIRST = 20


def check_reasoning(journal: Journal, model: str, output_dir: str) -> None:
    """
    Stop a teacher that does not reason, before all of its traces are paid for: the student learns from the reasoning.

    Args:
        journal (`Journal`): Of the run so far; the answers of an earlier start count too.
        model (`str`): The teacher, for the message.
        output_dir (`str`): Of the whole run, for the message.

    Raises:
        `InputError`: None of the first answers holds any reasoning.
    """
    total, completions = _first_answers(journal)
    if total == NUM_FIRST and completions:
        raise InputError(f"{_no_reasoning(total, completions, model)}; delete {output_dir} and start again")


def warning_of_no_reasoning(journal: Journal, model: str) -> str | None:
    """What to print at the end of a run that is too short for `check_reasoning`; None where nothing is wrong."""
    total, completions = _first_answers(journal)
    return f"warning: {_no_reasoning(total, completions, model)}" if 0 < total < NUM_FIRST and completions else None


def _first_answers(journal: Journal) -> tuple[int, list[dict[str, Any]]]:
    """How many questions of the first have answers, at most `NUM_FIRST`, and those answers if none holds any reasoning."""
    answered = (entry["completions"] for entry in journal.entries.values() if "completions" in entry)
    first = list(islice(answered, NUM_FIRST))
    completions = [completion for each in first for completion in each]
    return len(first), [] if any(_holds_reasoning(completion["text"]) for completion in completions) else completions


def _no_reasoning(total: int, completions: list[dict[str, Any]], model: str) -> str:
    seen = next((" ".join(completion["text"].split()) for completion in completions if completion["text"].strip()), "")
    found = f"the first {total} answers of {model} hold no reasoning: no <think>...</think>, and none beside the text"
    found += f" (one begins {seen[:60]!r})" if seen else " (all are empty)"
    if all(completion["finish_reason"] == "length" for completion in completions):
        remedy = "all of them were cut: raise --max_tokens"
    else:
        remedy = "choose a teacher that shows its reasoning, or have its server send it"
    return f"{found}; {remedy}"


def _holds_reasoning(text: str) -> bool:
    """Whether a text has reasoning, complete or cut."""
    return bool(extract_think(text)) or ("<think>" in text and "</think>" not in text)

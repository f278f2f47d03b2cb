"""Stop a teacher run early when its first answers hold no reasoning."""

from __future__ import annotations

from itertools import islice

from .answers import extract_think
from .cli import InputError
from .journal import Journal


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
    answered = (entry["completions"] for entry in journal.entries.values() if "completions" in entry)
    first = list(islice(answered, NUM_FIRST))
    completions = [completion for each in first for completion in each]
    if len(first) < NUM_FIRST or any(_holds_reasoning(completion["text"]) for completion in completions):
        return
    seen = next((" ".join(completion["text"].split()) for completion in completions if completion["text"].strip()), "")
    found = f"the first {NUM_FIRST} answers of {model} hold no reasoning: no <think>...</think>, and none beside the text"
    found += f" (one begins {seen[:60]!r})" if seen else " (all are empty)"
    if all(completion["finish_reason"] == "length" for completion in completions):
        remedy = "all of them were cut: raise --max_tokens"
    else:
        remedy = "choose a teacher that shows its reasoning, or have its server send it"
    raise InputError(f"{found}; {remedy}; delete {output_dir} and start again")


def _holds_reasoning(text: str) -> bool:
    """Whether a text has reasoning, complete or cut."""
    return bool(extract_think(text)) or ("<think>" in text and "</think>" not in text)

"""Stop a teacher run early when its first answers show that the rest would be worthless."""

from __future__ import annotations

import json
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


# Of so many questions, and how many of them must have equal traces to stop a run. A shorter run is not stopped, because nothing
# would be saved: from `FEW` questions on it ends with a warning.
FIRST, ALIKE, FEW = 20, 18, 5


def equal_traces(journal: Journal) -> tuple[int, int]:
    """
    Of the first questions with several traces, at most `FIRST`: how many there are, and how many have only equal ones, other
    than empty texts.
    """
    answered = (entry["completions"] for entry in journal.entries.values() if len(entry.get("completions", ())) > 1)
    texts = [{completion["text"] for completion in completions} for completions in islice(answered, FIRST)]
    return len(texts), sum(len(each) == 1 and any(text.strip() for text in each) for each in texts)


def check_traces_differ(journal: Journal, output_dir: str) -> None:
    """
    Stop a run whose traces are not sampled, before all of it is paid for; a rerun finds the same in the journal.

    Args:
        journal (`Journal`): Of the run, or of one of its ranks.
        output_dir (`str`): Of the whole run, for the message.

    Raises:
        `InputError`: The traces of nearly every one of the first questions are all equal.
    """
    total, alike = equal_traces(journal)
    if total == FIRST and alike >= ALIKE:
        raise InputError(f"{_not_drawn(journal, total, alike)}, delete {output_dir} and start again")


def warning_of_equal_traces(journal: Journal) -> str | None:
    """What to print at the end of a run that is too short for `check_traces_differ`; None where nothing is wrong."""
    total, alike = equal_traces(journal)
    return f"warning: {_not_drawn(journal, total, alike)}" if FEW <= total < FIRST and alike >= ALIKE / FIRST * total else None


def _not_drawn(journal: Journal, total: int, alike: int) -> str:
    sampling = next((entry["sampling"] for entry in journal.entries.values() if entry.get("sampling")), None)
    sent = f" (sent: {json.dumps(sampling)})" if sampling else ""
    return (
        f"the traces of {alike} of the first {total} questions are all equal{sent}: unanimity would mean nothing. Expected "
        "different traces of a question; raise --temperature, or check that the server samples"
    )

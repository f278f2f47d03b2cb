"""
Detect traces that are all equal: the teacher did not sample, so their agreement is no evidence.

At a temperature above 0 this happens when a server keeps the likeliest token only (top_k 1 in its defaults), or answers from a
cache. It is noticed after the first questions, before the rest is paid for.
"""

from __future__ import annotations

import json
from itertools import islice

from sightsound.cli import InputError
from sightsound.stage import Journal


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

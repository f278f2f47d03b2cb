"""
The method's rules on a ledger of traces: unanimity, verification, outcomes, and the arms, which are selections of it.

A ledger row is one question with all its traces (see `schema.traces_features`). Nothing here generates or drops: an arm is a
function from the ledger to training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from . import schema
from .answers import has_trace_format
from .cli import InputError
from .prompts import COT_INSTRUCTION, DIRECT_INSTRUCTION, question_text, render_label


TraceRow = dict[str, Any]

# What a row says of its verification before there was one.
UNVERIFIED = {"checker": None, "checker_revision": None, "verdict_mode": None, "checker_heard_s": None}

# The checker accepted a trace, but none that has the format to be trained on.
BAD_FORMAT = "bad_format"

ACCEPT, REJECT, INVALID = "accept", "reject", "invalid"


def is_unanimous(answers: Sequence[int | None]) -> bool:
    """The paper's |unique(A)| = 1. No answer is an answer of its own: one trace without one breaks unanimity."""
    return len(set(answers)) == 1


def majority(answers: Sequence[int | None]) -> int | None:
    """The answer that most traces give, the earliest of equals; None when no trace answers."""
    given = [answer for answer in answers if answer is not None]
    return Counter(given).most_common(1)[0][0] if given else None


def trace_outcome(traces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    `teacher_answer`, `unanimous` and `outcome` of a question, from its traces and, once they are there, their verdicts.
    """
    answers = [trace["answer"] for trace in traces]
    if majority(answers) is None:
        outcome = schema.NO_ANSWER
    elif not is_unanimous(answers):
        outcome = schema.NOT_UNANIMOUS
    elif all(trace["verdict"] is None for trace in traces):
        outcome = schema.NOT_VERIFIED
    elif any(trace["verdict"] == ACCEPT and _usable(trace) for trace in traces):
        outcome = schema.ACCEPTED
    elif any(trace["verdict"] == ACCEPT for trace in traces):
        outcome = BAD_FORMAT
    else:
        outcome = schema.ALL_REJECTED
    return {"teacher_answer": majority(answers), "unanimous": is_unanimous(answers), "outcome": outcome}


def _usable(trace: dict[str, Any]) -> bool:
    return trace["answer"] is not None and has_trace_format(trace["text"])


def _label(row: TraceRow) -> list[str]:
    return [] if row["teacher_answer"] is None else [render_label(row["choices"][row["teacher_answer"]].strip())]


def _cot(row: TraceRow) -> list[str]:
    return [trace["text"] for trace in row["traces"][:1] if _usable(trace)]


def _agfv(row: TraceRow) -> list[str]:
    return [trace["text"] for trace in row["traces"][:1] if _usable(trace) and trace["verdict"] == ACCEPT]


def _tts(row: TraceRow) -> list[str]:
    return [trace["text"] for trace in row["traces"] if _usable(trace)] if row["unanimous"] else []


def _tts_agfv(row: TraceRow) -> list[str]:
    accepted = [trace["text"] for trace in row["traces"] if _usable(trace) and trace["verdict"] == ACCEPT]
    return accepted if row["unanimous"] else []


# The arms of the paper's Table 2. Without test-time scaling there is one sample per question: the first.
SELECTIONS = {"label": _label, "cot": _cot, "agfv": _agfv, "tts": _tts, "tts_agfv": _tts_agfv}


def select(rows: Iterable[TraceRow], selection: str) -> list[dict[str, Any]]:
    """
    Training rows of an arm: `id`, `prompt` (messages), `completion`, `teacher_answer`, `choices`; one per selected trace.

    Raises:
        `InputError`: The arm is unknown, or selects nothing.
    """
    if selection not in SELECTIONS:
        raise InputError(f"unknown selection '{selection}'; expected one of {', '.join(SELECTIONS)}")
    instruction = DIRECT_INSTRUCTION if selection == "label" else COT_INSTRUCTION
    selected, outcomes = [], Counter[str]()
    for row in rows:
        prompt = [{"role": "user", "content": question_text(row["question"], row["choices"], instruction)}]
        outcomes[row["outcome"]] += 1
        for completion in SELECTIONS[selection](row):
            kept = {key: row[key] for key in ("id", "teacher_answer", "choices")}
            selected.append({**kept, "prompt": prompt, "completion": completion})
    if not selected:
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()) or "the ledger is empty"
        raise InputError(f"selection '{selection}' is empty ({told}); there is nothing to train on")
    return selected

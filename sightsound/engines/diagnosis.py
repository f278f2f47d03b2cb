"""
Detect a useless run. Stop it after its first answers, or print the cause and the remedy at its end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sightsound.cli import InputError
from sightsound.data.schema import REFUSED
from sightsound.method.answers import extract_think
from sightsound.method.question_filters import key_of
from sightsound.method.question_writing import WrittenQuestion
from sightsound.method.selection import Funnel, counted
from sightsound.method.verdicts import ACCEPT, CUT, NO_CLAIMS, NO_REASONING, REJECT, UNCLEAR
from sightsound.stage import Journal


# How many first questions decide whether a run is stopped. A shorter run ends with a warning: a stop would save nothing.
NUM_FIRST = 20
# A run is stopped when so many of them have equal traces. The warning of a shorter run needs at least `MIN_EQUAL` questions.
MOST_EQUAL, MIN_EQUAL = 18, 5


def check_reasoning(journal: Journal, model: str, output_dir: str) -> None:
    """
    Stop a teacher that does not reason, before all of its traces are paid for: the student learns from the reasoning.

    Args:
        journal (`Journal`): Of the run so far, with the answers of an earlier start.
        model (`str`): The teacher, for the message.
        output_dir (`str`): Of the whole run, for the message.

    Raises:
        `InputError`: None of the first answers has any reasoning.
    """
    total, completions = _first_answers(journal)
    if total == NUM_FIRST and completions:
        raise InputError(f"{_no_reasoning(total, completions, model)}; delete {output_dir} and start again")


def warning_of_no_reasoning(journal: Journal, model: str) -> str | None:
    """What to print at the end of a run that is too short for `check_reasoning`; None where nothing is wrong."""
    total, completions = _first_answers(journal)
    return f"warning: {_no_reasoning(total, completions, model)}" if 0 < total < NUM_FIRST and completions else None


def _first_answers(journal: Journal) -> tuple[int, list[dict[str, Any]]]:
    """How many first questions have answers, at most `NUM_FIRST`; and these answers, if none of them has any reasoning."""
    answered = (entry["completions"] for entry in journal.entries.values() if "completions" in entry)
    first = list(islice(answered, NUM_FIRST))
    completions = [completion for each in first for completion in each]
    return len(first), [] if any(_has_reasoning(completion["text"]) for completion in completions) else completions


def _no_reasoning(total: int, completions: list[dict[str, Any]], model: str) -> str:
    text = next((" ".join(completion["text"].split()) for completion in completions if completion["text"].strip()), "")
    found = f"the first {total} answers of {model} hold no reasoning: no <think>...</think>, and none beside the text"
    found += f" (one begins {text[:60]!r})" if text else " (all are empty)"
    if all(completion["finish_reason"] == "length" for completion in completions):
        remedy = "all of them were cut: raise --max_tokens"
    else:
        remedy = "choose a teacher that shows its reasoning, or have its server send it"
    return f"{found}; {remedy}"


def _has_reasoning(text: str) -> bool:
    """Whether a text has reasoning, complete or cut."""
    return bool(extract_think(text)) or ("<think>" in text and "</think>" not in text)


def check_traces_differ(journal: Journal, output_dir: str) -> None:
    """
    Stop a run whose traces are not sampled, before all of it is paid for. A rerun finds the same answers in the journal.

    Args:
        journal (`Journal`): Of the run, or of one of its ranks.
        output_dir (`str`): Of the whole run, for the message.

    Raises:
        `InputError`: For nearly all of the first questions all traces are equal.
    """
    total, num_equal = _equal_traces(journal)
    if total == NUM_FIRST and num_equal >= MOST_EQUAL:
        raise InputError(f"{_not_sampled(journal, total, num_equal)}, delete {output_dir} and start again")


def warning_of_equal_traces(journal: Journal) -> str | None:
    """What to print at the end of a run that is too short for `check_traces_differ`; None where nothing is wrong."""
    total, num_equal = _equal_traces(journal)
    is_wrong = MIN_EQUAL <= total < NUM_FIRST and num_equal >= MOST_EQUAL / NUM_FIRST * total
    return f"warning: {_not_sampled(journal, total, num_equal)}" if is_wrong else None


def _equal_traces(journal: Journal) -> tuple[int, int]:
    """How many first questions have several traces, at most `NUM_FIRST`; and of how many all traces are equal and not empty."""
    answered = (entry["completions"] for entry in journal.entries.values() if len(entry.get("completions", ())) > 1)
    texts = [{completion["text"] for completion in completions} for completions in islice(answered, NUM_FIRST)]
    return len(texts), sum(len(each) == 1 and any(text.strip() for text in each) for each in texts)


def _not_sampled(journal: Journal, total: int, num_equal: int) -> str:
    sampling = next((entry["sampling"] for entry in journal.entries.values() if entry.get("sampling")), None)
    sent = f" (sent: {json.dumps(sampling)})" if sampling else ""
    return (
        f"the traces of {num_equal} of the first {total} questions are all equal{sent}, so agreement between traces "
        "carries no information. Expected different traces of a question; raise --temperature, or check that the server samples"
    )


def check_questions_differ(replies: Iterable[Sequence[WrittenQuestion]], output_dir: str, *, at_end: bool = False) -> None:
    """
    Stop a teacher that writes the same question about everything, before all of it is paid for.

    Args:
        replies (`Iterable`): The questions of each reply so far.
        output_dir (`str`): Of the whole run, for the message.
        at_end (`bool`): There will be no more replies: fewer than `NUM_FIRST` are enough.

    Raises:
        `InputError`: Nearly all of the first replies hold one question, with the same choices and answer.
    """
    first = list(islice(replies, NUM_FIRST))
    found = Counter(key for each in first for key in {key_of(question) for question in each})
    same, count = found.most_common(1)[0] if found else (None, 0)
    if len(first) < (MIN_EQUAL if at_end else NUM_FIRST) or count < MOST_EQUAL / NUM_FIRST * len(first):
        return
    text = next(question.text for each in first for question in each if key_of(question) == same)
    raise InputError(
        f"the teacher wrote the same question about {count} of the first {len(first)} segments ('{text}', with the same "
        "choices and answer). Expected questions about what each shows; check that --model sees the frames, or give another "
        f"--prompt_file; delete {output_dir} and start again"
    )


def why_no_answer(traces: Iterable[dict[str, Any]], max_tokens: int) -> str:
    """How the traces of a teacher run without any answer ended, and the remedy for the most frequent end."""
    ends = {
        "length": (f"cut at --max_tokens {max_tokens}", "raise --max_tokens"),
        "refusal": ("refused", "choose another --model or --prompt"),
        "content_filter": ("filtered", "choose another --model or --prompt"),
        "empty": ("empty", "see what the server writes for --model, or choose another"),
        "stop": ("without a choice that can be read", "choose another --model"),
    }
    found = Counter(
        "empty" if trace["finish_reason"] == "stop" and not trace["text"].strip() else trace["finish_reason"]
        for trace in traces
    )
    if not found:
        return "correct --media_dir or --model"
    parts = [f"{count} {ends[reason][0]}" for reason, count in found.most_common()]
    first = found.most_common(1)[0][0]
    summary = f"all {found.total()} answers were {ends[first][0]}" if len(found) == 1 else f"answers: {', '.join(parts)}"
    return f"{summary}; {ends[first][1]}"


def summary_of_verdicts(funnel: Funnel, max_tokens: int) -> str:
    """How many traces have which verdict, and a remedy for those without one."""
    lines = [f"{funnel.verdicts.total()} traces: {counted(funnel.verdicts)}"]
    if set(funnel.verdicts) <= {NO_REASONING}:
        lines.append("The checker got no request: no trace has reasoning inside <think></think>.")
    if funnel.verdicts[CUT]:
        lines.append(f"{funnel.verdicts[CUT]} replies were cut: give a larger --max_tokens (now {max_tokens}).")
    return "\n".join(lines)


def warning_of_no_verdict(funnel: Funnel) -> str | None:
    """What to print where the checker got requests and no trace has `accept` or `reject`; None otherwise."""
    reasons = Counter({reason: count for reason, count in funnel.verdicts.items() if reason != NO_REASONING})
    if not reasons or ACCEPT in reasons or REJECT in reasons:
        return None
    reason = reasons.most_common(1)[0][0]
    remedy = {
        UNCLEAR: "the checker says neither yes nor no: choose another --checker or --verdict_mode",
        REFUSED: "the checker refuses: choose another --checker; the column verdict_text and ledger.parquet say how",
        CUT: "raise --max_tokens",
        NO_CLAIMS: "the traces name no sounds in the form that is compared: choose --verdict_mode yes_no",
    }.get(str(reason), "ledger.parquet says what was seen: correct the --checker or its server")
    return (
        f"warning: not one of {funnel.verdicts.total()} traces was accepted or rejected, mostly for the reason {reason}; "
        f"{remedy}; delete the folder and start again"
    )

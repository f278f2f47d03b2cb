"""
The method's rules on a ledger of traces: unanimity, verification, outcomes, and the arms, which are selections of it.

A ledger row is one question with all its traces (see `schema.traces_features`). Nothing here generates or drops: an arm is a
function from the ledger to training rows. The ledger of a real run does not fit in memory: it is read, joined and counted
row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.parquet import parquet_schema, read_parquet
from sightsound.data.sources import split_revision
from sightsound.method.answers import has_trace_format
from sightsound.method.prompts import COT_INSTRUCTION, DIRECT_INSTRUCTION, question_text, render_label


TraceRow = dict[str, Any]

# What a row says of its verification before there was one.
UNVERIFIED = dict.fromkeys(("checker", "checker_revision", "verdict_mode", "checker_sampling", "checker_heard_s"))

# The checker accepted a trace, but none that has the format to be trained on.
BAD_FORMAT = "bad_format"

ACCEPT, REJECT = "accept", "reject"
# Why a trace has no verdict. Where the checker's request failed, it is the request's outcome (`schema.REFUSED` and others).
NO_REASONING, NO_CLAIMS, UNCLEAR, CUT = "no_reasoning", "no_claims", "unclear", "cut"
INVALID = "invalid"  # in files of earlier versions, which recorded no reason

# What stands in `verdict`, as the card and the page explain it; None is a trace that was not checked yet.
VERDICTS = {
    ACCEPT: "the checker heard every sound that the trace claims",
    REJECT: "the checker did not hear every sound that the trace claims, or not in that order",
    NO_REASONING: "no verdict: the trace has no reasoning to check",
    NO_CLAIMS: "no verdict: the reasoning does not list what is heard, so there is nothing to compare",
    UNCLEAR: "no verdict: the checker's reply is neither a clear yes nor a clear no",
    CUT: "no verdict: the checker's reply was cut by its token limit",
    schema.REFUSED: "no verdict: the checker or its server refused",
    schema.CORRUPT_MEDIA: "no verdict: the clip cannot be decoded",
    schema.BAD_RESPONSE: "no verdict: the server sent no chat completion",
    schema.SERVER_ERROR: "no verdict: the server failed at this request",
    INVALID: "no verdict: the reason was not recorded",
    None: "not checked yet",
}


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
    elif any(trace["verdict"] == REJECT for trace in traces):
        outcome = schema.ALL_REJECTED
    else:  # no trace has a verdict: the reason that most traces share
        outcome = next(iter(lacking_verdicts(traces)))
    return {"teacher_answer": majority(answers), "unanimous": is_unanimous(answers), "outcome": outcome}


def lacking_verdicts(traces: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Why traces have no verdict, and how many each: the most frequent reason first, the earliest of equals."""
    reasons = Counter(trace["verdict"] or schema.NOT_VERIFIED for trace in traces if trace["verdict"] not in (ACCEPT, REJECT))
    return dict(reasons.most_common())


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

# The upper baseline of Table 2, and the only arm that sees an annotated answer. No selection of a ledger: see `gold_labels`.
GROUND_TRUTH = "ground_truth"


def instruction_of(selection: str) -> str:
    """How the questions of an arm are asked."""
    return DIRECT_INSTRUCTION if selection in ("label", GROUND_TRUTH) else COT_INSTRUCTION


def gold_labels(questions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Training rows of the arm `ground_truth`: `id`, `prompt` (messages), `completion`, `choices`, for every question.

    Args:
        questions (`Iterable[dict]`): Rows of avqa-audio; their `answer` is what the other arms never read.
    """
    return [
        {
            "id": row["id"],
            "choices": row["choices"],
            "prompt": [{"role": "user", "content": question_text(row["question"], row["choices"], DIRECT_INSTRUCTION)}],
            "completion": render_label(row["choices"][row["answer"]].strip()),
        }
        for row in questions
    ]


def select(rows: Iterable[TraceRow], selection: str, instruction: str | None = None) -> list[dict[str, Any]]:
    """
    Training rows of an arm: `id`, `prompt` (messages), `completion`, `teacher_answer`, `choices`; one per selected trace.

    Args:
        rows (`Iterable[dict]`): The ledger.
        selection (`str`): One of `SELECTIONS`.
        instruction (`str`, *optional*): What ends the prompts; by default `instruction_of(selection)`.

    Raises:
        `InputError`: The arm is unknown, or selects nothing.
    """
    if selection not in SELECTIONS:
        raise InputError(f"unknown selection '{selection}'; expected one of {', '.join(SELECTIONS)}")
    instruction = instruction or instruction_of(selection)
    selected, outcomes = [], Counter[str]()
    for row in rows:
        prompt = [{"role": "user", "content": question_text(row["question"], row["choices"], instruction)}]
        outcomes[row["outcome"]] += 1
        for completion in SELECTIONS[selection](row):
            kept = {key: row[key] for key in ("id", "teacher_answer", "choices")}
            selected.append({**kept, "prompt": prompt, "completion": completion})
    if not selected:
        told = counted(outcomes) or "the ledger is empty"
        raise InputError(f"selection '{selection}' is empty ({told}); there is nothing to train on")
    return selected


def stream_rows(source: str, columns: Sequence[str] | None = None) -> Iterator[TraceRow]:
    """
    The rows of a traces or verdicts folder (or Hub dataset), in order, a row group in memory at a time.

    The files are those that `load_dataset` would take. They are read here because it would first copy them into its cache,
    and as a stream it takes four times the time and keeps something of every row group.

    Args:
        source (`str`): Output of `traces.py` or `verdicts.py`.
        columns (`Sequence[str]`, *optional*): Only these.

    Raises:
        `InputError`: There is no such dataset.
    """
    import pyarrow as pa
    from datasets import Features, load_dataset_builder

    from sightsound.data.kinds import TRACES, check_kind

    name, revision = split_revision(source)
    try:
        files = load_dataset_builder(name, revision=revision).config.data_files["train"]
        found = Features.from_arrow_schema(parquet_schema(files[0]))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        told = f"cannot open split 'train' of {source} ({reason}); expected a dataset folder or a Hub dataset id"
        raise InputError(told) from error
    check_kind(found, source, TRACES)
    return read_parquet(files, columns)


def join_verdicts(traces: Iterable[TraceRow], verdicts: Iterable[TraceRow], unjoined: Unjoined) -> Iterator[TraceRow]:
    """
    Every traced question with its verdicts; one that was never verified keeps the outcome that says so.

    Both sides are read once, in the order that they share: verdicts may lack questions, not have them elsewhere.

    Args:
        unjoined (`Unjoined`): Filled in; look at it once the last row has been read.
    """
    remaining = iter(verdicts)
    verified = next(remaining, None)
    for row in traces:
        if verified is None or verified["id"] != row["id"]:
            yield row
            continue
        if [trace["text"] for trace in row["traces"]] != [trace["text"] for trace in verified["traces"]]:
            unjoined.stale.append(row["id"])
        yield verified
        verified = next(remaining, None)
    if verified is not None:
        unjoined.foreign = [verified["id"], *(row["id"] for row in remaining)]


@dataclass
class Unjoined:
    """Ids of verdicts that cannot be used: `stale`, on other traces than there are now; `foreign`, on no traced question."""

    stale: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def check(self, verdicts: str) -> None:
        """
        Raises:
            `InputError`: There is any.
        """
        if self.stale:
            told = f"{len(self.stale)} questions (first: {self.stale[0]}) have verdicts on other traces"
            raise InputError(f"{told}; run verdicts.py on these")
        if self.foreign:
            told = f"{len(self.foreign)} verdicts (first: {self.foreign[0]}) are on no question of the traces, or not in their"
            raise InputError(f"{told} order; is {verdicts} the output of verdicts.py on them?")


def counted(words: Counter[str] | Counter[str | None]) -> str:
    """Outcomes or verdicts and how often each came, for a person: the most frequent first."""
    return ", ".join(f"{count} {shown(word)}" for word, count in words.most_common())


def shown(word: str | None) -> str:
    """An outcome or verdict for a person: what was not checked yet has not failed a check."""
    return VERDICTS[None] if word in (None, schema.NOT_VERIFIED) else word


@dataclass
class Funnel:
    """What a ledger holds, counted while it passes by."""

    questions: int = 0
    answered: int = 0
    unanimous: int = 0
    checked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str | None] = field(default_factory=Counter)

    @property
    def accepted(self) -> int:
        return self.outcomes[schema.ACCEPTED]

    def add(self, row: TraceRow) -> None:
        is_answered = row["teacher_answer"] is not None
        self.questions += 1
        self.answered += is_answered
        self.unanimous += is_answered and row["unanimous"]
        self.outcomes[row["outcome"]] += 1
        self.checked += is_answered and row["unanimous"] and any(t["verdict"] in (ACCEPT, REJECT) for t in row["traces"])
        self.verdicts.update(trace["verdict"] for trace in row["traces"])

    def count(self, rows: Iterable[TraceRow]) -> Iterator[TraceRow]:
        """The same rows, each added as it is read."""
        for row in rows:
            self.add(row)
            yield row

    def steps(self) -> dict[str, int]:
        """The steps that the card shows, in order; each holds the next."""
        return {
            "asked": self.questions,
            "answered by the teacher": self.answered,
            "unanimous": self.unanimous,
            "with a verdict": self.checked,
            "accepted": self.accepted,
        }

    @property
    def told(self) -> str:
        """Outcomes and how often each came, the most frequent first."""
        return counted(self.outcomes)

    def __str__(self) -> str:
        return f"{self.questions} questions: {self.told}"

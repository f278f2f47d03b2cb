"""
Filters and arms: which questions and traces the student learns from.

A row of the ledger is one question with all its traces (see `schema.traces_features`). `FILTERS` decide its outcome,
`accepted` or the reason why not. An arm of the paper's ablation is a selection of the same ledger and generates nothing
(`ARMS`). A `Funnel` counts what the filters leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.method.answers import has_trace_format
from sightsound.method.prompts import COT_PROMPT, DIRECT_PROMPT, question_text, render_label
from sightsound.method.verdicts import ACCEPT, REJECT, VERDICTS


Trace = dict[str, Any]
TraceRow = dict[str, Any]

# The columns of the checker, before there is one.
UNVERIFIED = dict.fromkeys(
    (
        "checker",
        "checker_revision",
        "verdict_mode",
        "checker_sampling",
        "checker_heard_s",
        "rewriter",
        "rewriter_revision",
    )
)

BAD_FORMAT = "bad_format"  # the checker accepted a trace, but none that can be trained on


def is_unanimous(answers: Sequence[int | None]) -> bool:
    """The paper's |unique(A)| = 1. None counts as an answer: a trace without an answer breaks unanimity."""
    return len(set(answers)) == 1


def majority(answers: Sequence[int | None]) -> int | None:
    """The most frequent answer, of equals the earliest; None when no trace has one."""
    given = [answer for answer in answers if answer is not None]
    return Counter(given).most_common(1)[0][0] if given else None


@dataclass(frozen=True, kw_only=True)
class Filter:
    """
    A condition that the traces of a question have to meet.

    Args:
        name (`str`): Name of the filter's step in the funnel, on the figure and on the cards of students.
        passes (`Callable`): From the traces of a question to whether the question passes.
        outcome (`str` or `Callable`): The outcome of a question that does not pass, or a function that finds it in the traces.
        meaning (`str`): Explains this outcome on the page with the traces.
        step (`str`, *optional*): Text of the step on the card of the corpus; `{num_traces}` is filled in. A filter without it
            has no step: the questions that it drops show only in the last step, `accepted`.
    """

    name: str
    passes: Callable[[Sequence[Trace]], bool]
    outcome: str | Callable[[Sequence[Trace]], str]
    meaning: str
    step: str | None = None


# The filters apply in this order. The outcome of a question is that of the first filter that it does not pass, or `accepted`.
# The funnel, its figure, the cards and the page with the traces iterate this list too: to add a filter, add it here.
FILTERS = [
    Filter(
        name="answered by the teacher",
        passes=lambda traces: majority(_answers(traces)) is not None,
        outcome=schema.NO_ANSWER,
        meaning="no trace has an answer that can be read",
        step="answered by the teacher",
    ),
    Filter(  # test-time scaling
        name="unanimous",
        passes=lambda traces: is_unanimous(_answers(traces)),
        outcome=schema.NOT_UNANIMOUS,
        meaning="the traces do not agree on one answer",
        step="unanimous over {num_traces} traces",
    ),
    Filter(
        name="with a verdict",
        passes=lambda traces: any(trace["verdict"] in (ACCEPT, REJECT) for trace in traces),
        outcome=lambda traces: next(iter(lacking_verdicts(traces))),
        meaning="no trace has a verdict: the reason that most traces share",
        step="with a verdict of the checker on at least one trace",
    ),
    Filter(  # audio-grounded fact verification
        name="verified",
        passes=lambda traces: any(trace["verdict"] == ACCEPT for trace in traces),
        outcome=schema.ALL_REJECTED,
        meaning="the checker rejected every trace that has a verdict",
    ),
    Filter(
        name="in the format",
        passes=lambda traces: any(trace["verdict"] == ACCEPT and _usable(trace) for trace in traces),
        outcome=BAD_FORMAT,
        meaning="no accepted trace is exactly <think>...</think><answer>...</answer>",
    ),
]


def trace_outcome(traces: Sequence[Trace]) -> dict[str, Any]:
    """
    `teacher_answer`, `unanimous` and `outcome` of a question, from its traces and their verdicts.

    Before verification the verdicts are None, and a question that passes the first filters is `not_verified`.
    """
    answers = _answers(traces)
    dropped_by = next((each for each in FILTERS if not each.passes(traces)), None)
    outcome = schema.ACCEPTED if dropped_by is None else dropped_by.outcome
    return {
        "teacher_answer": majority(answers),
        "unanimous": is_unanimous(answers),
        "outcome": outcome if isinstance(outcome, str) else outcome(traces),
    }


def outcome_meanings() -> dict[str, str]:
    """What each outcome means, in the order of the filters; the page with the traces shows it."""
    words = {each.outcome: each.meaning for each in FILTERS if isinstance(each.outcome, str)}
    reasons = {word: meaning for word, meaning in VERDICTS.items() if word not in (ACCEPT, REJECT, None)}
    return words | {schema.NOT_VERIFIED: VERDICTS[None], **reasons, schema.ACCEPTED: "the question passed every filter"}


def lacking_verdicts(traces: Sequence[Trace]) -> dict[str, int]:
    """Reasons why traces have no verdict, with their numbers: the most frequent first, of equals the earliest."""
    reasons = Counter(trace["verdict"] or schema.NOT_VERIFIED for trace in traces if trace["verdict"] not in (ACCEPT, REJECT))
    return dict(reasons.most_common())


def _answers(traces: Sequence[Trace]) -> list[int | None]:
    return [trace["answer"] for trace in traces]


def _usable(trace: Trace) -> bool:
    return trace["answer"] is not None and has_trace_format(trace["text"])


def _texts(traces: Iterable[Trace], *, accepted: bool) -> list[str]:
    """Texts of the traces that can be trained on; with `accepted` only of those that the checker accepted."""
    return [trace["text"] for trace in traces if _usable(trace) and (not accepted or trace["verdict"] == ACCEPT)]


def _surviving(row: TraceRow) -> list[Trace]:
    """The accepted traces, and for rejected ones what was written again from their true claims, if that was accepted."""
    versions = (trace if trace["verdict"] == ACCEPT else trace.get("rewritten") for trace in row["traces"])
    return [each for each in versions if each is not None and each["verdict"] == ACCEPT and _usable(each)]


def _agreed_answer(row: TraceRow) -> int | None:
    """The answer of all surviving traces; None where there is none, or they do not agree."""
    answers = [trace["answer"] for trace in _surviving(row)]
    return answers[0] if answers and is_unanimous(answers) else None


def _label(row: TraceRow) -> list[str]:
    return [] if row["teacher_answer"] is None else [render_label(row["choices"][row["teacher_answer"]].strip())]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """
    A row of the paper's Table 2: what the student learns from each question, and under which prompt.

    Args:
        name (`str`): The `selection` in a recipe's YAML.
        meaning (`str`): Explains the arm in `--help`.
        completions (`Callable`): From a row of the ledger to the targets that the student learns, none to many.
        prompt (`str`): The prompt that the question is filled into.
        of_ledger (`bool`): False for an arm whose rows are those of avqa-audio, not of the ledger.
        label (`Callable`): From a row of the ledger to the answer that GRPO rewards.
    """

    name: str
    meaning: str
    completions: Callable[[TraceRow], list[str]]
    prompt: str = COT_PROMPT
    of_ledger: bool = True
    label: Callable[[TraceRow], int | None] = itemgetter("teacher_answer")


# The upper baseline of Table 2 and the only arm that reads annotated answers.
GROUND_TRUTH = "ground_truth"
FULL_METHOD = "tts_agfv"
OF_CLAIMS = "tts_claims"  # needs `verdicts.py --verdict_mode claims --rewriter`
# Without test-time scaling (tts), a question has one sample: its first trace.
ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name=GROUND_TRUTH,
            meaning="the annotated answers",
            completions=lambda row: [render_label(row["choices"][row["answer"]].strip())],
            prompt=DIRECT_PROMPT,
            of_ledger=False,
        ),
        Arm(name="label", meaning="the teacher's answers alone", completions=_label, prompt=DIRECT_PROMPT),
        Arm(
            name="cot",
            meaning="the first trace",
            completions=lambda row: _texts(row["traces"][:1], accepted=False),
        ),
        Arm(
            name="agfv",
            meaning="the first trace, where the checker accepted it",
            completions=lambda row: _texts(row["traces"][:1], accepted=True),
        ),
        Arm(
            name="tts",
            meaning="all traces of a question on whose answer they agree",
            completions=lambda row: _texts(row["traces"], accepted=False) if row["unanimous"] else [],
        ),
        Arm(
            name=FULL_METHOD,
            meaning="the accepted traces of the questions that passed every filter",
            completions=lambda row: _texts(row["traces"], accepted=True) if row["outcome"] == schema.ACCEPTED else [],
        ),
        Arm(
            name=OF_CLAIMS,
            meaning="the accepted traces, and those written again from their true claims, if all of them agree",
            completions=lambda row: [] if _agreed_answer(row) is None else [trace["text"] for trace in _surviving(row)],
            label=_agreed_answer,
        ),
    )
}


def _training_row(row: TraceRow, completion: str, prompt: str) -> dict[str, Any]:
    kept: dict[str, Any] = {key: row[key] for key in ("id", "teacher_answer", "choices") if key in row}
    content = question_text(row["question"], row["choices"], prompt)
    return {**kept, "prompt": [{"role": "user", "content": content}], "completion": completion}


def gold_labels(questions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Training rows of the arm `ground_truth`: `id`, `prompt` (messages), `completion`, `choices`, for every question.

    Args:
        questions (`Iterable[dict]`): Rows of avqa-audio. The other arms never read their `answer`.
    """
    arm = ARMS[GROUND_TRUTH]
    return [_training_row(row, completion, arm.prompt) for row in questions for completion in arm.completions(row)]


def select(rows: Iterable[TraceRow], selection: str, prompt: str | None = None) -> list[dict[str, Any]]:
    """
    Training rows of an arm: `id`, `prompt` (messages), `completion`, `teacher_answer`, `choices`; one per selected trace.

    Args:
        rows (`Iterable[dict]`): The ledger.
        selection (`str`): Name of one of the `ARMS`.
        prompt (`str`, *optional*): By default that of the arm.

    Raises:
        `InputError`: The arm is unknown, or selects nothing.
    """
    known = [name for name, arm in ARMS.items() if arm.of_ledger]
    if selection not in known:
        raise InputError(f"unknown selection '{selection}'; expected one of {', '.join(known)}")
    arm, selected, outcomes = ARMS[selection], [], Counter[str]()
    for row in rows:
        outcomes[row["outcome"]] += 1
        if completions := arm.completions(row):
            labelled = row | {"teacher_answer": arm.label(row)}
            selected += [_training_row(labelled, completion, prompt or arm.prompt) for completion in completions]
    if not selected:
        summary = counted(outcomes) or "the ledger is empty"
        raise InputError(f"selection '{selection}' is empty ({summary}); there is nothing to train on")
    return selected


def counted(words: Counter[str] | Counter[str | None]) -> str:
    """Outcomes or verdicts with their numbers, for people: the most frequent first."""
    return ", ".join(f"{count} {shown(word)}" for word, count in words.most_common())


def shown(word: str | None) -> str:
    """An outcome or verdict as cards and messages show it: what was not checked yet is no failure."""
    return VERDICTS[None] if word in (None, schema.NOT_VERIFIED) else word


@dataclass
class Funnel:
    """Counts of the questions and verdicts of a ledger, row by row."""

    questions: int = 0
    passed: Counter[str] = field(default_factory=Counter)  # questions that passed a filter, by its name
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str | None] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)  # verdicts on single claims, in the modes that ask about them
    rewritten: Counter[str] = field(default_factory=Counter)  # verdicts on traces that were written again

    @property
    def answered(self) -> int:
        return self.passed[FILTERS[0].name]

    @property
    def accepted(self) -> int:
        return self.outcomes[schema.ACCEPTED]

    def add(self, row: TraceRow) -> None:
        self.questions += 1
        self.outcomes[row["outcome"]] += 1
        self.verdicts.update(trace["verdict"] for trace in row["traces"])
        for trace in row["traces"]:
            self.claims.update(claim["verdict"] for claim in trace.get("claims") or ())
            self.rewritten.update([new["verdict"]] if (new := trace.get("rewritten")) is not None else ())
        for each in FILTERS:
            if row["outcome"] != schema.ACCEPTED and not each.passes(row["traces"]):
                break
            self.passed[each.name] += 1

    def count(self, rows: Iterable[TraceRow]) -> Iterator[TraceRow]:
        """The same rows, each added as it is read."""
        for row in rows:
            self.add(row)
            yield row

    def steps(self) -> dict[str, int]:
        """Name of each step -> questions that are left after it; each step contains the next."""
        left = {each.name: self.passed[each.name] for each in FILTERS if each.step}
        return {"asked": self.questions, **left, "accepted": self.accepted}

    def card_steps(self, num_traces: int) -> list[tuple[str, int]]:
        """The steps with their texts on the card of the corpus."""
        left = [(each.step.format(num_traces=num_traces), self.passed[each.name]) for each in FILTERS if each.step]
        return [("asked", self.questions), *left, ("accepted: at least one trace verified", self.accepted)]

    @property
    def summary(self) -> str:
        """Outcomes with their numbers, the most frequent first."""
        return counted(self.outcomes)

    def __str__(self) -> str:
        return f"{self.questions} questions: {self.summary}"

"""
Protocols: which answers are right, wrong, or no answer at all.

`paper` is the paper's protocol: an option letter, or else the most similar choice. `official` is the benchmark's own rule, in
its file of `sightsound/benchmarks/`. Both read the answer that `sightsound.method.answers` extracts from an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError
from sightsound.data.annotations import Row
from sightsound.method.answers import extract_answer_text, is_correct, match_choice


PAPER, OFFICIAL = "paper", "official"
UNANSWERED = "none"


class Decision(NamedTuple):
    """
    The grade of one output.

    Args:
        correct (`bool`): Whether it is right.
        matched_by (`str`): How the answer was read; `"none"` for an output without an answer.
        choice (`str`, *optional*): Text of the choice that the answer was matched to; official rules match no choice.
    """

    correct: bool
    matched_by: str
    choice: str | None = None


def _decide_as_paper(answer_text: str, row: Row) -> Decision:
    answer = match_choice(answer_text, row["choices"])
    choice = None if answer.index is None else row["choices"][answer.index]
    return Decision(is_correct(answer, row["answer"], row["choices"]), answer.matched_by, choice)


def _decider(benchmark: str, protocol: str) -> Callable[[str, Row], Decision]:
    """
    The grading function of a protocol: an extracted answer and its question -> a decision.

    Raises:
        `InputError`: The benchmark has no such protocol.
    """
    if protocol == PAPER:
        return _decide_as_paper
    rule = get_benchmark(benchmark).official_rule
    if protocol != OFFICIAL or rule is None:
        raise InputError(f"{benchmark} has no protocol '{protocol}'; expected {', '.join(protocols_of(benchmark))}")
    # Made once, since a file has tens of thousands of answers and only three different decisions.
    unanswered, wrong, right = Decision(False, UNANSWERED), Decision(False, rule.matched_by), Decision(True, rule.matched_by)
    decisions = {None: unanswered, False: wrong, True: right}
    return lambda answer_text, row: decisions[rule.decide(answer_text, row)]


def protocols_of(benchmark: str) -> list[str]:
    """The protocols that a benchmark is scored by, the official one first."""
    return [OFFICIAL, PAPER] if get_benchmark(benchmark).official_rule else [PAPER]


def skips_missing(benchmark: str) -> bool:
    """Whether the benchmark's published script leaves questions without a prediction out of its total."""
    rule = get_benchmark(benchmark).official_rule
    return rule is not None and rule.skips_missing


def decide_all(
    benchmark: str, protocols: Iterable[str], outputs: Iterable[str | None], rows: Iterable[Row]
) -> dict[str, list[Decision]]:
    """
    Grade outputs under several protocols.

    Args:
        benchmark (`str`): Its name.
        protocols (`Iterable[str]`): `"official"`, `"paper"`.
        outputs (`Iterable[str | None]`): As the model wrote them; None where there is no output, which is unanswered.
        rows (`Iterable[dict]`): The question of each output.

    Returns:
        `dict`: Per protocol, a decision on each output.

    Raises:
        `InputError`: The benchmark has no such protocol.
    """
    deciders = {name: _decider(benchmark, name) for name in protocols}
    # Samples of a run, and runs, repeat each other's answers: each answer to a question is graded once.
    number: dict[tuple[str, str | None], int] = {}
    distinct: list[tuple[str | None, Row]] = []
    order = []
    for output, row in zip(outputs, rows, strict=True):
        answer = None if output is None else extract_answer_text(output)
        key = (row["id"], answer)
        if key not in number:
            number[key] = len(distinct)
            distinct.append((answer, row))
        order.append(number[key])
    decisions = {}
    for name, decide in deciders.items():
        of_distinct = [Decision(False, UNANSWERED) if answer is None else decide(answer, row) for answer, row in distinct]
        decisions[name] = [of_distinct[i] for i in order]
    return decisions


def chosen_index(benchmark: str, protocol: str, decision: Decision, output: str | None, row: Row) -> int | None:
    """
    Index of the choice that an output was read as.

    An official rule only says right or wrong. Where it says wrong, the output is read as the one choice that the rule would
    accept if that choice were the right one.

    Args:
        decision (`Decision`): The protocol's on this output.
        output (`str`, *optional*): As the model wrote it.
        row (`dict`): The question as it was asked.

    Returns:
        `int` or `None`: None for an unanswered question, or where the official rule fits no choice or several.
    """
    choices: list[str] = row["choices"]
    if output is None or decision.matched_by == UNANSWERED:
        return None
    if protocol == PAPER:
        return None if decision.choice is None else choices.index(decision.choice)
    if decision.correct:
        return int(row["answer"])
    decide, answer = _decider(benchmark, protocol), extract_answer_text(output)
    fitting = {
        choice: i for i, choice in enumerate(choices) if decide(answer, row | {"answer": i, "answer_text": choice}).correct
    }
    return next(iter(fitting.values())) if len(fitting) == 1 else None

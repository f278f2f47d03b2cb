"""
Protocols: from what a model wrote to right, wrong or unanswered.

`paper` is the paper's, an option letter or else the most similar choice; `official` is the benchmark's own. Both read the
answer that `sightsound.method.answers` extracts. The scorers themselves are the `evaluate` metrics in `evaluation/metrics/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from evaluation.benchmarks import Row, get_benchmark
from evaluation.metrics.mmau_official import matcher as mmau_matcher
from evaluation.metrics.music_avqa import matcher as music_avqa_matcher
from sightsound.cli import InputError
from sightsound.method.answers import extract_answer_text, is_correct, match_choice


PAPER, OFFICIAL = "paper", "official"
UNANSWERED = "none"


class Decision(NamedTuple):
    """
    Whether an output is right, and how that was told: `matched_by` is `"none"` when it answers nothing. `choice` is the text
    of the choice that it was matched to, where the protocol matches any.
    """

    correct: bool
    matched_by: str
    choice: str | None = None


def _paper(answer_text: str, row: Row) -> Decision:
    answer = match_choice(answer_text, row["choices"])
    choice = None if answer.index is None else row["choices"][answer.index]
    return Decision(is_correct(answer, row["answer"], row["choices"]), answer.matched_by, choice)


def _by_rule(rule: str) -> dict[bool | None, Decision]:
    return {None: Decision(False, UNANSWERED), False: Decision(False, rule), True: Decision(True, rule)}


_BY_WORDS, _BY_VOCABULARY = _by_rule("words"), _by_rule("vocabulary")


def _mmau(answer_text: str, row: Row) -> Decision:
    return _BY_WORDS[mmau_matcher.decide(answer_text, row["answer_text"], row["choices"])]


def _music_avqa(answer_text: str, row: Row) -> Decision:
    return _BY_VOCABULARY[music_avqa_matcher.decide(answer_text, row["answer_text"])]


# By `Benchmark.official`; `decide_all` asks for none where a benchmark has none.
_OFFICIAL: dict[str | None, Callable[[str, Row], Decision]] = {"mmau_official": _mmau, "music_avqa": _music_avqa}


def protocols_of(benchmark: str) -> list[str]:
    """What a benchmark can be scored by, the official one first."""
    return [OFFICIAL, PAPER] if get_benchmark(benchmark).official else [PAPER]


def decide_all(
    benchmark: str, protocols: Iterable[str], outputs: Iterable[str | None], rows: Iterable[Row]
) -> dict[str, list[Decision]]:
    """
    Decide on outputs under several protocols.

    Args:
        benchmark (`str`): Its name.
        protocols (`Iterable[str]`): `"official"`, `"paper"`.
        outputs (`Iterable[str | None]`): As the model wrote them; None where there is none: unanswered.
        rows (`Iterable[dict]`): The question of each output.

    Raises:
        `InputError`: The benchmark has no such protocol.
    """
    protocols, known = list(protocols), protocols_of(benchmark)
    unknown = [name for name in protocols if name not in known]
    if unknown:
        raise InputError(f"{benchmark} has no protocol '{unknown[0]}'; expected {', '.join(known)}")
    # Samples of a run, and runs, repeat each other's answers: each answer to a question is decided once.
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
    for name in protocols:
        decide = _decider(benchmark, name)
        told = [Decision(False, UNANSWERED) if answer is None else decide(answer, row) for answer, row in distinct]
        decisions[name] = [told[i] for i in order]
    return decisions


def chosen_index(benchmark: str, protocol: str, decision: Decision, output: str | None, row: Row) -> int | None:
    """
    Which choice an output was taken for, by its index.

    An official rule decides right or wrong, and says no choice: an output is taken for the only choice that the rule would
    call right, were it the gold one.

    Args:
        decision (`Decision`): The protocol's on this output.
        output (`str`, *optional*): As the model wrote it.
        row (`dict`): The question as it was asked.

    Returns:
        `int` or `None`: None when nothing was answered, or when the official rule fits no choice or several.
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


def _decider(benchmark: str, protocol: str) -> Callable[[str, Row], Decision]:
    return _paper if protocol == PAPER else _OFFICIAL[get_benchmark(benchmark).official]

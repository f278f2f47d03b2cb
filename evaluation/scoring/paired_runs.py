"""Two runs on the same questions, compared in pairs."""

from __future__ import annotations

from typing import Any

from evaluation.benchmarks import Row
from evaluation.scoring.statistics import Comparison, compare
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError


def compare_runs(first: dict[str, Row], second: dict[str, Row], benchmark: str, are_files: bool = False) -> Comparison:
    """
    Compare two runs on one benchmark, over the questions that its average counts.

    Args:
        first, second (`dict`): Rows of predictions by question id.
        benchmark (`str`): Its name.
        are_files (`bool`): Whether a side is another tool's file: an error then names no flags of `run`.

    Raises:
        `InputError`: They did not answer the same questions, or one does not hold which questions are averaged.
    """
    check_same_questions(first, second, benchmark, are_files)
    spec = get_benchmark(benchmark)
    if spec.averages_in_paper and any("in_paper" not in row for run in (first, second) for row in run.values()):
        raise InputError(f"predictions on {benchmark} lack in_paper: not by this version; evaluate again")
    counted = [row_id for row_id, row in first.items() if spec.counts(row)]
    first_correct, second_correct = ([run[row_id]["correct"] for row_id in counted] for run in (first, second))
    return compare(first_correct, second_correct, [first[row_id]["video_id"] for row_id in counted])


def check_same_questions(first: dict[str, Row], second: dict[str, Row], benchmark: str, are_files: bool) -> None:
    """
    Check that two runs answered the same questions. Ids repeat across splits, so the questions themselves are compared.

    Raises:
        `InputError`: They differ in split, revision, content or number of questions.
    """
    splits = [split_in(run) for run in (first, second)]
    if all(splits) and splits[0] != splits[1]:
        seen = f"split {splits[0]} in the first, split {splits[1]} in the second"
        raise InputError(f"on {benchmark} the runs are about other questions: {seen}; ask both the same split")
    revisions = {row["benchmark_revision"] for run in (first, second) for row in run.values()}
    if len(revisions) > 1:
        found = ", ".join(sorted(revisions))
        raise InputError(f"the runs answer {benchmark} in different revisions: {found}; run both on one")
    others = [row_id for row_id in first if row_id in second and _content(first[row_id]) != _content(second[row_id])]
    if others:
        seen = f"other questions under the same ids ({len(others)} of them, first: {others[0]})"
        raise InputError(f"on {benchmark} the runs are about {seen}; the runs may have a different --split")
    only_first, only_second = first.keys() - second.keys(), second.keys() - first.keys()
    if not only_first and not only_second:
        return
    example = min(only_first | only_second)
    if are_files:
        counts = f"{len(only_first)} only in the first, {len(only_second)} only in the second (such as {example})"
        remedy = "leave only questions that both answer in the files, or add the outputs that are missing"
        raise InputError(f"on {benchmark} the files answer different questions: {counts}; {remedy}")
    cause = f"the runs may have a different {'--split' if only_first and only_second else '--limit'}"
    count = len(only_first | only_second)
    raise InputError(f"{count} questions of {benchmark} are in one run only (first: {example}); {cause}")


def split_in(answers: dict[str, Row]) -> str | None:
    """The split of the questions; None where the rows do not say, such as those of an annotation file."""
    return " and ".join(sorted({row["split"] for row in answers.values() if row.get("split")})) or None


def _content(row: Row) -> tuple[Any, ...]:
    return row["video_id"], row["choices"], row["gold"]

"""The rows that SFT and GRPO train on: the questions or traces of one arm, joined with their clips."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.method.audio_contribution import (
    CONTRIBUTIONS,
    STRONG,
    UNKNOWN,
    WEAK,
    contribution_word,
    contributions_of,
    known_contribution,
)
from sightsound.method.prompts import COT_PROMPT
from sightsound.method.selection import ARMS, GROUND_TRUTH, gold_labels, select
from sightsound.training.distributed import is_main_process


if TYPE_CHECKING:
    from datasets import Dataset

    from sightsound.data.parquet import AudioById
    from sightsound.training.collator import CompletionCollator

USED = "used"


def check_selection(selection: str, traces: str | None, *, for_grpo: bool) -> None:
    """
    Raises:
        `InputError`: There is no such arm, it is not one for GRPO, or `--traces` is missing or not read by it.
    """
    if selection == GROUND_TRUTH and for_grpo:
        raise InputError("selection ground_truth is for SFT: GRPO's label is the teacher's answer; choose another arm")
    if selection == GROUND_TRUTH and traces is not None:
        raise InputError("selection ground_truth uses the answers of --audio and no traces: leave --traces out")
    arms = [name for name, arm in ARMS.items() if arm.of_ledger or not for_grpo]
    if selection not in arms:
        raise InputError(f"unknown selection '{selection}'; expected one of {', '.join(arms)}")
    if selection != GROUND_TRUTH and traces is None:
        raise InputError(f"selection {selection} is made from a corpus: give it with --traces FOLDER_OR_HUB_ID")


def _contribution_words(script_args: Any, dataset: Dataset) -> dict[str, str]:
    """Audio contribution by question id: as `dataset` says, which may have been labelled last, else as the corpus says."""
    from sightsound.data.parquet import open_dataset

    known = [contributions_of(dataset)]
    if script_args.traces is not None:
        known.append(contributions_of(open_dataset(script_args.traces, "train", "traces")))
    ids = set[str]().union(*known)
    return {row_id: contribution_word(known_contribution(*(each.get(row_id, {}) for each in known))) for row_id in ids}


def _other_contribution(
    script_args: Any, dataset: Dataset, selected: list[dict[str, Any]]
) -> Callable[[str], tuple[str, str] | None]:
    """
    A function from a question's id to the outcome and detail of one that `audio_contribution` leaves out.

    Raises:
        `InputError`: There is no such audio contribution, or no selected question has it.
    """
    wanted = script_args.audio_contribution
    if wanted is None:
        return lambda _: None
    if wanted not in (STRONG, WEAK):
        raise InputError(f"unknown audio_contribution '{wanted}'; expected {STRONG} or {WEAK}")
    words = _contribution_words(script_args, dataset)
    counts = Counter(words.get(row_id, UNKNOWN) for row_id in {row["id"] for row in selected})
    if not counts[wanted]:
        seen = ", ".join(f"{counts[word]} {word}" for word in CONTRIBUTIONS)
        raise InputError(
            f"audio_contribution {wanted} leaves no question of selection {script_args.selection} ({seen}); label --audio with "
            "dataset_builders/audio_contribution.py, or leave audio_contribution out"
        )

    def reason(row_id: str) -> tuple[str, str] | None:
        word = words.get(row_id, UNKNOWN)
        return None if word == wanted else (not_of(wanted), f"its audio contribution is {word}")

    return reason


def not_of(audio_contribution: str) -> str:
    """Outcome of a question that a recipe's `audio_contribution` leaves out: `not_strong`."""
    return f"not_{audio_contribution}"


def _selected(script_args: Any, dataset: Dataset, for_grpo: bool) -> list[dict[str, Any]]:
    """The rows of an arm, without their clips."""
    from sightsound.data.kinds import CORPUS, open_input
    from sightsound.data.parquet import check_same_clips

    check_selection(script_args.selection, script_args.traces, for_grpo=for_grpo)
    if script_args.selection == GROUND_TRUTH:
        return gold_labels(dataset.select_columns(["id", "question", "choices", "answer"]))
    try:
        rows = open_input(script_args.traces, "train", CORPUS, "traces")
    except InputError as error:
        raise InputError(f"--traces: {error} with the config `traces`, as dataset_builders/cot_corpus.py writes it") from error
    selected = select(rows, script_args.selection, COT_PROMPT if for_grpo else None)
    if for_grpo:  # one row per question: its first
        selected = list({row["id"]: row for row in reversed(selected)}.values())[::-1]
    known = set(dataset["id"])
    traced = (row for row in rows.select_columns(["id", "media_sha256"]) if row["id"] in known)
    check_same_clips(traced, dataset, f"split '{script_args.split}' of {script_args.audio}")
    return selected


def _is_empty(completion: str) -> bool:
    """Whether there is no text besides the tags: such a target would teach the student to answer nothing."""
    return not re.sub(r"</?(?:think|answer)>", "", completion).strip()


def join_audio(rows: list[dict[str, Any]], audio: AudioById) -> Dataset:
    """Rows with the undecoded clip of their `id` as `audio`, which is read when a batch needs it."""
    from datasets import Dataset

    def add_audio(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "audio": [audio[row_id] for row_id in batch["id"]]}

    return Dataset.from_list(rows).with_transform(add_audio)


def audio_rows(script_args: Any, collator: CompletionCollator, ledger_path: Path, *, for_grpo: bool = False) -> Dataset:
    """
    The rows of an arm, joined with their clips.

    Args:
        script_args: With `traces`, `audio`, `split`, `selection` and `audio_contribution`.
        collator (`CompletionCollator`): Of the model to be trained: it has the model's window and the maximum length.
        ledger_path (`Path`): Written: every selected row with its outcome (`used`, `not_strong` or `not_weak` after
            `audio_contribution`, `missing_audio`, `empty_completion` or `too_long`). `detail` says where a clip was cut to the
            model's window, and where the target is the ground truth.
        for_grpo (`bool`): One row per question, and always with the prompt that asks for reasoning, also for the arm `label`:
            the format reward needs it.

    Returns:
        `Dataset`: The used rows, with `prompt`, `completion` (SFT) and `audio`.

    Raises:
        `InputError`: The selection is unusable or empty, or none of its rows can be used.
    """
    from sightsound.data.kinds import CLIPS, open_input
    from sightsound.data.parquet import AudioById, write_ledger

    dataset = open_input(script_args.audio, script_args.split, CLIPS)
    selected = _selected(script_args, dataset, for_grpo)
    other_contribution = _other_contribution(script_args, dataset, selected)
    audio = AudioById(dataset)
    duration_s = dict(zip(dataset["id"], dataset["duration_s"], strict=True))
    is_cut = {row_id for row_id, seconds in duration_s.items() if collator.window_s and seconds > collator.window_s}

    def reason_to_drop(row: dict[str, Any]) -> tuple[str, str] | None:
        if other := other_contribution(row["id"]):
            return other
        if row["id"] not in audio:
            return "missing_audio", f"{script_args.audio} has no such row"
        if not for_grpo and _is_empty(row["completion"]):
            return "empty_completion", f"nothing to learn in {row['completion']!r}"
        if collator.max_length:
            length = collator.num_tokens({**row, "audio": True}, duration_s[row["id"]])
            if length > collator.max_length:
                return "too_long", f"{length} tokens, max_length is {collator.max_length}"
        return None

    def details(row: dict[str, Any]) -> Iterator[str]:
        if script_args.selection == GROUND_TRUTH:
            yield "ground truth"
        if row["id"] in is_cut:
            yield f"cut: the model hears {collator.window_s:g} of {duration_s[row['id']]:.2f} s"

    used, ledger = [], []
    for row in selected:
        outcome, detail = reason_to_drop(row) or (USED, "; ".join(details(row)) or None)
        if outcome == USED:
            used.append(row)
        ledger.append({"id": row["id"], "outcome": outcome, "detail": detail})
    outcomes = Counter(entry["outcome"] for entry in ledger)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    if is_main_process():
        write_ledger(ledger, ledger_path)
        num_cut = sum(row["id"] in is_cut for row in used)
        print(f"{script_args.selection}: {summary}" + (f"; {num_cut} clips cut to {collator.window_s:g} s" if num_cut else ""))
    if not used:
        raise InputError(f"no selected row can be used ({summary}); {ledger_path} has the reason for each")
    return join_audio(used, audio)

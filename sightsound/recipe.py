"""What the training scripts share: YAML and flags into dataclasses, and which of the arguments change the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import InputError


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from .collator import CompletionCollator

# Where results go, how they are reported and what `TrainingArguments` derives from the machine: a rerun may differ in these.
_NOT_SETTINGS = (
    "output_dir",
    "logging",
    "report_to",
    "disable_tqdm",
    "run_name",
    "resume_from_checkpoint",
    "hub_token",
)


def parse_config(dataclasses: tuple[type, ...]) -> tuple[Any, ...]:
    """
    `--config YAML` and flags into dataclasses, through TRL's parser; an unknown key or flag is an `InputError`.

    Args:
        dataclasses (`tuple[type, ...]`): The script's own arguments and TRL's configs.
    """
    from trl import TrlParser

    try:
        return TrlParser(dataclasses).parse_args_and_config()
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise InputError(f"{error}; see --help for the fields that this recipe accepts") from error


def training_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """The training arguments that change the result, for `Stage`."""
    return {k: v for k, v in arguments.to_dict().items() if not k.startswith(_NOT_SETTINGS)}


def refuse_push(arguments: TrainingArguments) -> None:
    """`Trainer.push_to_hub` would upload `training_args.bin`, a pickle."""
    if arguments.push_to_hub:
        raise InputError("push_to_hub is not supported by this recipe: upload the finished `model/` folder instead")


def audio_rows(script_args: Any, collator: CompletionCollator, ledger_path: Path, one_per_question: bool = False) -> Dataset:
    """
    The rows of an arm, joined with their clips; clips are read when a batch needs them.

    Args:
        script_args: With `traces`, `audio`, `split` and `selection`.
        collator (`CompletionCollator`): Of the model that is trained: knows its window and the allowed length.
        ledger_path (`Path`): Gets every selected trace with its outcome: `used`, `missing_audio` or `too_long`; `detail`
            says where a clip is longer than the model's window and so was cut.
        one_per_question (`bool`): Keep the first trace of each question only (GRPO samples its own).

    Raises:
        `InputError`: The selection is empty, or no row of it can be used.
    """
    from collections import Counter

    from datasets import Dataset

    from .corpus import select
    from .schema import AudioById, open_dataset, write_ledger

    selected = select(open_dataset(script_args.traces, "train", "traces"), script_args.selection)
    if one_per_question:
        selected = list({row["id"]: row for row in reversed(selected)}.values())[::-1]
    dataset = open_dataset(script_args.audio, script_args.split)
    audio = AudioById(dataset)
    duration_s = dict(zip(dataset["id"], dataset["duration_s"], strict=True))
    used, ledger = [], []

    def length_of(row: dict[str, Any]) -> int:
        return collator.num_tokens({**row, "audio": True}, duration_s[row["id"]])

    for row in selected:
        outcome, detail = "used", None
        if row["id"] not in audio:
            outcome, detail = "missing_audio", f"{script_args.audio} has no such row"
        elif collator.max_length and (length := length_of(row)) > collator.max_length:
            outcome, detail = "too_long", f"{length} tokens, max_length is {collator.max_length}"
        elif collator.window_s and duration_s[row["id"]] > collator.window_s:
            detail = f"cut: the model hears {collator.window_s:g} of {duration_s[row['id']]:.2f} s"
        if outcome == "used":
            used.append(row)
        ledger.append({"id": row["id"], "outcome": outcome, "detail": detail})
    write_ledger(ledger, ledger_path)
    counts = Counter(entry["outcome"] for entry in ledger)
    cut = sum(entry["outcome"] == "used" and entry["detail"] is not None for entry in ledger)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{script_args.selection}: {told}" + (f"; {cut} clips cut to {collator.window_s:g} s" if cut else ""))
    if not used:
        raise InputError(f"no selected trace can be used ({told}); {ledger_path} tells why")

    def add_audio(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "audio": [audio[row_id] for row_id in batch["id"]]}

    return Dataset.from_list(used).with_transform(add_audio)

"""What the training scripts share: YAML and flags into dataclasses, and which of the arguments change the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .cli import InputError
from .prompts import COT_INSTRUCTION, PROMPT_VERSION
from .publishing import REPO_ID, PublishArguments


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments
    from trl import ModelConfig

    from .collator import CompletionCollator
    from .validation import ValidationSet


@dataclass(kw_only=True)
class ValidationArguments:
    """Read when `eval_strategy` asks for evaluation: then `eval_accuracy` is measured on validation questions."""

    validation_split: str = field(default="validation", metadata={"help": "split of avqa-audio; its ground truth is read"})
    num_validation: int = field(default=200, metadata={"help": "questions of it, evenly spaced"})
    validation_max_tokens: int = field(default=512, metadata={"help": "per answer"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations without a better one"}
    )


# Where results go and how they are reported: a rerun may differ in these.
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
    import yaml
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:  # argparse would print every field there is
            raise ValueError(message)

    try:
        return Parser(dataclasses).parse_args_and_config()
    except (ValueError, TypeError, FileNotFoundError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"{told}; see --help for the fields that this recipe accepts") from error


def training_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """The training arguments that change the result, and the version of the prompts, for `Stage`."""
    settings = {k: v for k, v in arguments.to_dict().items() if not k.startswith(_NOT_SETTINGS)}
    return settings | {"prompt_version": PROMPT_VERSION}


# What the recipes read of `ModelConfig`; anything else would be accepted and do nothing.
_MODEL_FIELDS = (
    "model_name_or_path",
    "model_revision",
    "dtype",
    "attn_implementation",
    "use_peft",
    "lora_",
    "use_rslora",
)


def take_publication(training_args: TrainingArguments) -> PublishArguments:
    """
    What `--push_to_hub --hub_model_id ORG/NAME [--hub_private_repo]` asks for, taken out of the arguments.

    `Trainer` would upload `training_args.bin`, a pickle; and where a result goes does not change it: a finished folder can
    still be published.
    """
    repository = training_args.hub_model_id if training_args.push_to_hub else None
    if training_args.push_to_hub and not REPO_ID.fullmatch(repository or ""):
        raise InputError(f"push_to_hub with hub_model_id {repository}: expected ORG/NAME, such as my-lab/verifier")
    private = bool(training_args.hub_private_repo) and repository is not None
    training_args.push_to_hub, training_args.hub_model_id, training_args.hub_private_repo = False, None, None
    return PublishArguments(push_to_hub=repository, private=private)


def refuse_what_would_be_ignored(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """
    Refuse settings that these recipes do not carry out.

    Raises:
        `InputError`: `push_to_hub` (`Trainer` would upload `training_args.bin`, a pickle), several processes, or a field of
            `ModelConfig` that is not read.
    """
    if training_args.push_to_hub:
        raise InputError("push_to_hub is not supported by this recipe: upload the finished `model/` folder instead")
    if training_args.world_size > 1:
        raise InputError(f"expected one process, found {training_args.world_size}: this version trains on one; see README")
    defaults = type(model_args)()
    for name, value in asdict(model_args).items():
        if not name.startswith(_MODEL_FIELDS) and value != getattr(defaults, name):
            raise InputError(f"{name}: {value} is not supported by this recipe; leave it out")


def validation_of(script_args: Any, training_args: TrainingArguments, instruction: str) -> ValidationSet | None:
    """
    The questions that checkpoints are judged by; None when nothing is evaluated.

    Raises:
        `InputError`: The best checkpoint is asked for without an evaluation, or by another metric.
    """
    from .validation import METRIC, ValidationSet

    if training_args.eval_strategy == "no":
        if script_args.early_stopping_patience is not None:
            raise InputError("early_stopping_patience needs evaluations: set eval_strategy: steps and eval_steps")
        return None
    if training_args.metric_for_best_model not in (None, METRIC):
        found = training_args.metric_for_best_model
        raise InputError(f"metric_for_best_model: {found}: expected {METRIC}, which is what evaluation measures here")
    from .schema import open_dataset

    rows = open_dataset(script_args.audio, script_args.validation_split)
    size = training_args.per_device_eval_batch_size
    return ValidationSet.evenly_spaced(rows, script_args.num_validation, instruction, size, script_args.validation_max_tokens)


def callbacks_of(script_args: Any) -> list[Any]:
    """Early stopping, if asked for."""
    from transformers import EarlyStoppingCallback

    patience = script_args.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


def audio_rows(script_args: Any, collator: CompletionCollator, ledger_path: Path, samples_its_own: bool = False) -> Dataset:
    """
    The rows of an arm, joined with their clips; clips are read when a batch needs them.

    Args:
        script_args: With `traces`, `audio`, `split` and `selection`.
        collator (`CompletionCollator`): Of the model that is trained: knows its window and the allowed length.
        ledger_path (`Path`): Gets every selected trace with its outcome: `used`, `missing_audio` or `too_long`; `detail`
            says where a clip is longer than the model's window and so was cut.
        samples_its_own (`bool`): For GRPO: one row per question, and always with the prompt that asks for reasoning, which the
            format reward wants to see also where the selection is `label`.

    Raises:
        `InputError`: The selection is empty, or no row of it can be used.
    """
    from collections import Counter

    from datasets import Dataset

    from .corpus import select
    from .schema import AudioById, check_same_clips, open_dataset, write_ledger

    rows = open_dataset(script_args.traces, "train", "traces")
    selected = select(rows, script_args.selection, COT_INSTRUCTION if samples_its_own else None)
    if samples_its_own:
        selected = list({row["id"]: row for row in reversed(selected)}.values())[::-1]
    dataset = open_dataset(script_args.audio, script_args.split)
    audio = AudioById(dataset)
    traced = (row for row in rows.select_columns(["id", "media_sha256"]) if row["id"] in audio)
    check_same_clips(traced, dataset, f"split '{script_args.split}' of {script_args.audio}")
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

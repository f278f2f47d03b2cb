"""What the training scripts share: YAML and flags into dataclasses, and which of the arguments change the result."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sightsound.cli import InputError, unknown_flags
from sightsound.data.sources import REPO_ID
from sightsound.hub.publish import PublishArguments
from sightsound.method.prompts import COT_INSTRUCTION, PROMPT_VERSION
from sightsound.method.selection import ARMS, GROUND_TRUTH, gold_labels, select
from sightsound.training.distributed import describe_processes, is_main_process, on_main_process, without_zero3_init


if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import TrainingArguments
    from trl import ModelConfig

    from sightsound.training.collator import CompletionCollator
    from sightsound.training.validation import ValidationSet


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
    "log_completions",
    "num_completions_to_print",
    "disable_tqdm",
    "run_name",
    "resume_from_checkpoint",
    "hub_token",
    "vllm_server_",
    "vllm_group_port",
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

        def set_defaults_with_config(self, **fields: Any) -> list[str]:
            if unknown := [part for part in super().set_defaults_with_config(**fields) if part.startswith("--")]:
                names = ", ".join(unknown).replace("--", "")
                meant = unknown_flags(unknown, flags).replace("--", "")
                raise ValueError(f"the file of --config has fields that this recipe does not know: {names}{meant}")
            return []

    # An abbreviation that is clear today is another field's once there is one more.
    parser = Parser(dataclasses, allow_abbrev=False)
    flags = ["--config", *parser._option_string_actions]
    if sys.argv[-1] == "--config":
        raise InputError("--config is without a value; give a YAML file, such as one of recipes/miniature/")
    try:
        return parser.parse_args_and_config()
    except FileNotFoundError as error:
        raise InputError(f"--config {error.filename}: there is no such file; give a YAML file") from error
    except (ValueError, TypeError, OSError, IndexError, yaml.YAMLError) as error:
        told = " ".join(str(error).split()) + unknown_flags(sys.argv[1:], flags)
        raise InputError(f"{told}; see --help for the fields that this recipe accepts") from error


def pin_inputs(script_args: Any, model_args: ModelConfig, output_dir: str, flags: Sequence[str]) -> str | None:
    """
    Look up on the Hub what training reads: by the main process, for all. Datasets are pinned in place.

    Args:
        flags (`Sequence[str]`): The fields of `script_args` that name datasets.

    Returns:
        `str` or `None`: The model's commit, of a Hub model.
    """
    from sightsound.hub.inputs import pin_datasets
    from sightsound.models.sources import pin_model

    def look_up() -> tuple[list[str | None], str | None]:
        pin_datasets(script_args, flags, output_dir)
        commit = pin_model("model_name_or_path", model_args.model_name_or_path, output_dir, model_args.model_revision)
        return [getattr(script_args, flag) for flag in flags], commit

    pinned, commit = on_main_process(look_up)
    for flag, source in zip(flags, pinned, strict=True):
        setattr(script_args, flag, source)
    return commit


def training_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """The training arguments that change the result, and the version of the prompts, for `Stage`."""
    settings = {k: v for k, v in arguments.to_dict().items() if not k.startswith(_NOT_SETTINGS)}
    return settings | {"processes": describe_processes(arguments), "prompt_version": PROMPT_VERSION}


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
    if training_args.hub_token is not None:
        raise InputError("hub_token: others can read it where it stands; leave it out and set HF_TOKEN")
    repository = training_args.hub_model_id if training_args.push_to_hub else None
    if training_args.push_to_hub and not REPO_ID.fullmatch(repository or ""):
        raise InputError(f"push_to_hub with hub_model_id {repository}: expected ORG/NAME, such as my-lab/verifier")
    private = bool(training_args.hub_private_repo) and repository is not None
    training_args.push_to_hub, training_args.hub_model_id, training_args.hub_private_repo = False, None, None
    return PublishArguments(push_to_hub=repository, private=private)


def check_unsupported_fields(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """
    Refuse settings that these recipes do not carry out.

    Raises:
        `InputError`: No model is named, a field of `ModelConfig` is not read, or a tracker in `report_to` is not installed.
    """
    from transformers.integrations import get_available_reporting_integrations

    if model_args.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the folder or Hub id of the model that training starts from")
    installed = get_available_reporting_integrations()
    for tracker in training_args.report_to:
        if tracker not in installed:
            told = f"here are {', '.join(installed) or 'none'}"
            raise InputError(f"report_to: {tracker} is not installed ({told}); pip install it, or set report_to: none")
    defaults = type(model_args)()
    for name, value in asdict(model_args).items():
        if not name.startswith(_MODEL_FIELDS) and value != getattr(defaults, name):
            raise InputError(f"{name}: {value} is not supported by this recipe; leave it out")


def lora_of(model_args: ModelConfig) -> PeftConfig | None:
    """
    The LoRA that the flags ask for, tried on the model without its weights; None where they ask for none.

    Raises:
        `InputError`: It would reach nothing, or what hears: the usual list of suffixes (`q_proj`, ...) also names modules of
            the audio tower, whose adapters vLLM cannot serve.
    """
    import copy

    import torch
    from peft import get_peft_model
    from transformers import AutoConfig
    from trl import get_peft_config

    from sightsound.models.family import family_of
    from sightsound.models.loading import student_class

    lora = get_peft_config(model_args)
    if lora is None:
        return None
    asked = model_args.lora_target_modules
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    family = family_of(config)
    remedy = f"the recipes use ['{family.lora_target_modules}']"
    if asked is None:
        raise InputError(f"use_peft without lora_target_modules; {remedy}")
    with without_zero3_init(), torch.device("meta"):
        model = student_class(model_args.model_name_or_path, model_args.model_revision)(config)
    try:
        reached = get_peft_model(model, copy.deepcopy(lora)).base_model.targeted_module_names
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"lora_target_modules {asked} matches no module ({reason}); {remedy}") from error
    outside = [name for name in reached if not family.in_language_model(name)]
    if outside:
        told = f"matches {len(outside)} modules outside the language model (first: {outside[0]})"
        raise InputError(f"lora_target_modules {asked} {told}; {remedy}")
    if is_main_process():
        print(f"LoRA: {len(reached)} modules of the language model, 0 of the audio tower")
    return lora


def validation_of(script_args: Any, training_args: TrainingArguments, instruction: str) -> ValidationSet | None:
    """
    The questions that checkpoints are judged by; None when nothing is evaluated.

    Raises:
        `InputError`: The best checkpoint is asked for without an evaluation, or by another metric; or FSDP shards the model.
    """
    from sightsound.data.kinds import CLIPS, open_input
    from sightsound.training.validation import METRIC, ValidationSet

    if training_args.eval_strategy == "no":
        if script_args.early_stopping_patience is not None:
            raise InputError("early_stopping_patience needs evaluations: set eval_strategy: steps and eval_steps")
        return None
    if training_args.distributed_state.distributed_type.value == "FSDP":
        # Each forward gathers weights from all processes, and their answers are of different lengths.
        raise InputError(
            "evaluation does not work under FSDP: processes would wait for each other for ever; choose "
            "accelerate_configs/zero3.yaml, or set eval_strategy: no and load_best_model_at_end: false"
        )
    # "loss" is what transformers fills in.
    if training_args.metric_for_best_model not in (None, "loss", METRIC):
        found = training_args.metric_for_best_model
        raise InputError(f"metric_for_best_model: {found}: set it to {METRIC}, which is what evaluation measures here")
    training_args.metric_for_best_model, training_args.greater_is_better = METRIC, True
    # What early stopping has counted so far.
    training_args.restore_callback_states_from_checkpoint = True
    rows = open_input(script_args.audio, script_args.validation_split, CLIPS)
    size = training_args.per_device_eval_batch_size
    return ValidationSet.evenly_spaced(rows, script_args.num_validation, instruction, size, script_args.validation_max_tokens)


def callbacks_of(script_args: Any) -> list[Any]:
    """Early stopping, if asked for."""
    from transformers import EarlyStoppingCallback

    patience = script_args.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


def _selected(script_args: Any, dataset: Dataset, samples_its_own: bool) -> list[dict[str, Any]]:
    """The rows of an arm, without their clips."""
    from sightsound.data.kinds import CORPUS, open_input
    from sightsound.data.parquet import check_same_clips

    if script_args.selection == GROUND_TRUTH:
        if samples_its_own:
            raise InputError("selection ground_truth is for SFT: GRPO's label is the teacher's answer, so choose another arm")
        if script_args.traces is not None:
            raise InputError("selection ground_truth reads the answers of --audio and no traces: leave --traces out")
        return gold_labels(dataset.select_columns(["id", "question", "choices", "answer"]))
    if script_args.selection not in ARMS:
        arms = ", ".join(name for name, arm in ARMS.items() if arm.of_ledger or not samples_its_own)
        raise InputError(f"unknown selection '{script_args.selection}'; expected one of {arms}")
    if script_args.traces is None:
        raise InputError(f"selection {script_args.selection} is one of a corpus: give it with --traces FOLDER_OR_HUB_ID")
    try:
        rows = open_input(script_args.traces, "train", CORPUS, "traces")
    except InputError as error:
        raise InputError(f"--traces: {error} with the config `traces`, as dataset_builders/cot_corpus.py writes it") from error
    selected = select(rows, script_args.selection, COT_INSTRUCTION if samples_its_own else None)
    if samples_its_own:
        selected = list({row["id"]: row for row in reversed(selected)}.values())[::-1]
    known = set(dataset["id"])
    traced = (row for row in rows.select_columns(["id", "media_sha256"]) if row["id"] in known)
    check_same_clips(traced, dataset, f"split '{script_args.split}' of {script_args.audio}")
    return selected


def _is_empty(completion: str) -> bool:
    """Nothing, or tags with nothing between them: a target that teaches to say nothing."""
    return not re.sub(r"</?(?:think|answer)>", "", completion).strip()


def audio_rows(script_args: Any, collator: CompletionCollator, ledger_path: Path, samples_its_own: bool = False) -> Dataset:
    """
    The rows of an arm, joined with their clips; clips are read when a batch needs them.

    Args:
        script_args: With `traces`, `audio`, `split` and `selection`.
        collator (`CompletionCollator`): Of the model that is trained: knows its window and the allowed length.
        ledger_path (`Path`): Gets every selected trace with its outcome: `used`, `missing_audio`, `empty_completion` or
            `too_long`; `detail` says where a clip is longer than the model's window and so was cut, and where the target is
            the ground truth.
        samples_its_own (`bool`): For GRPO: one row per question, and always with the prompt that asks for reasoning, which the
            format reward wants to see also where the selection is `label`.

    Raises:
        `InputError`: The selection is empty, or no row of it can be used.
    """
    from collections import Counter

    from datasets import Dataset

    from sightsound.data.kinds import CLIPS, open_input
    from sightsound.data.parquet import AudioById, write_ledger

    dataset = open_input(script_args.audio, script_args.split, CLIPS)
    selected = _selected(script_args, dataset, samples_its_own)
    audio = AudioById(dataset)
    duration_s = dict(zip(dataset["id"], dataset["duration_s"], strict=True))
    used, ledger, num_cut = [], [], 0

    def length_of(row: dict[str, Any]) -> int:
        return collator.num_tokens({**row, "audio": True}, duration_s[row["id"]])

    for row in selected:
        outcome, detail = "used", "ground truth" if script_args.selection == GROUND_TRUTH else None
        if row["id"] not in audio:
            outcome, detail = "missing_audio", f"{script_args.audio} has no such row"
        elif not samples_its_own and _is_empty(row["completion"]):
            outcome, detail = "empty_completion", f"nothing to learn in {row['completion']!r}"
        elif collator.max_length and (length := length_of(row)) > collator.max_length:
            outcome, detail = "too_long", f"{length} tokens, max_length is {collator.max_length}"
        elif collator.window_s and duration_s[row["id"]] > collator.window_s:
            cut = f"cut: the model hears {collator.window_s:g} of {duration_s[row['id']]:.2f} s"
            detail = f"{detail}; {cut}" if detail else cut
            num_cut += 1
        if outcome == "used":
            used.append(row)
        ledger.append({"id": row["id"], "outcome": outcome, "detail": detail})
    if is_main_process():
        write_ledger(ledger, ledger_path)
    counts = Counter(entry["outcome"] for entry in ledger)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    if is_main_process():
        print(f"{script_args.selection}: {told}" + (f"; {num_cut} clips cut to {collator.window_s:g} s" if num_cut else ""))
    if not used:
        raise InputError(f"no selected trace can be used ({told}); {ledger_path} tells why")

    def add_audio(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "audio": [audio[row_id] for row_id in batch["id"]]}

    return Dataset.from_list(used).with_transform(add_audio)

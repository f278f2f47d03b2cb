"""The command line of a training script: YAML and flags into dataclasses, and the checks that refuse a run before it starts."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from sightsound.cli import InputError, unknown_flags
from sightsound.data.sources import REPO_ID
from sightsound.hub.publish import PublishArguments
from sightsound.method.audio_contribution import STRONG, WEAK
from sightsound.training.distributed import all_ranks_or_none, is_main_process, without_zero3_init


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import TrainingArguments
    from trl import ModelConfig


@dataclass(kw_only=True)
class ValidationArguments:
    """Used when `eval_strategy` is not "no": `eval_accuracy` is then measured on validation questions."""

    validation_split: str = field(default="validation", metadata={"help": "split of avqa-audio; its ground truth is used"})
    num_validation: int = field(default=200, metadata={"help": "validation questions, evenly spaced over the split"})
    validation_max_tokens: int = field(default=512, metadata={"help": "maximum number of tokens of one validation answer"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after this many evaluations without a better accuracy"}
    )


@dataclass(kw_only=True)
class StudentArguments(ValidationArguments):
    """What SFT and GRPO share."""

    audio_contribution: str | None = field(
        default=None,
        metadata={
            "help": f"only the questions of `selection` with this audio contribution: {STRONG} (not answered right without the "
            f"clip) or {WEAK}; questions get it from dataset_builders/questions.py or audio_contribution.py"
        },
    )


@all_ranks_or_none()
def parse_config(dataclasses: tuple[type, ...]) -> tuple[Any, ...]:
    """
    Parse `--config YAML` and flags with TRL's parser.

    Args:
        dataclasses (`tuple[type, ...]`): The script's own arguments and TRL's configs.

    Returns:
        `tuple`: One instance of each dataclass.

    Raises:
        `InputError`: A flag or a key of the YAML is unknown, missing or has an unusable value.
    """
    import yaml
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:  # argparse would print all of the several hundred fields
            raise ValueError(message)

        def set_defaults_with_config(self, **fields: Any) -> list[str]:
            if unknown := [part for part in super().set_defaults_with_config(**fields) if part.startswith("--")]:
                names = ", ".join(unknown).replace("--", "")
                suggestion = unknown_flags(unknown, flags).replace("--", "")
                raise ValueError(f"the file of --config has fields that this recipe does not know: {names}{suggestion}")
            return []

    # No abbreviations: one that is unique today is ambiguous once a field is added.
    parser = Parser(dataclasses, allow_abbrev=False)
    flags = ["--config", *parser._option_string_actions]
    if sys.argv[-1] == "--config":
        raise InputError("--config has no value; give a YAML file, such as one of recipes/miniature/")
    try:
        return parser.parse_args_and_config()
    except FileNotFoundError as error:
        raise InputError(f"--config {error.filename}: there is no such file; give a YAML file") from error
    except (ValueError, TypeError, OSError, IndexError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) + unknown_flags(sys.argv[1:], flags)
        raise InputError(f"{reason}; see --help for the fields that this recipe accepts") from error


def take_publication(training_args: TrainingArguments) -> PublishArguments:
    """
    Move `--push_to_hub --hub_model_id ORG/NAME [--hub_private_repo]` from the training arguments to `PublishArguments`.

    `Trainer` itself must not publish: it would upload `training_args.bin`, a pickle. And the repository does not change the
    result, so that a finished folder can still be published by a rerun.

    Raises:
        `InputError`: A token is on the command line, or `hub_model_id` is no ORG/NAME.
    """
    if training_args.hub_token is not None:
        raise InputError("hub_token can be read by other users of this machine; leave it out and set HF_TOKEN")
    repository = training_args.hub_model_id if training_args.push_to_hub else None
    if training_args.push_to_hub and not REPO_ID.fullmatch(repository or ""):
        raise InputError(f"push_to_hub with hub_model_id {repository}: expected ORG/NAME, such as my-lab/verifier")
    private = bool(training_args.hub_private_repo) and repository is not None
    training_args.push_to_hub, training_args.hub_model_id, training_args.hub_private_repo = False, None, None
    return PublishArguments(push_to_hub=repository, private=private)


# The fields of `ModelConfig` that the recipes use; any other would be accepted and do nothing.
_MODEL_FIELDS = (
    "model_name_or_path",
    "model_revision",
    "dtype",
    "attn_implementation",
    "use_peft",
    "lora_",
    "use_rslora",
)


def check_unsupported_fields(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """
    Refuse settings that the recipes do not carry out.

    Raises:
        `InputError`: No model is named, a field of `ModelConfig` is set that the recipes do not use, or a tracker in
            `report_to` is not installed.
    """
    from transformers.integrations import get_available_reporting_integrations

    if model_args.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: give the folder or Hub id of the model that training starts from")
    installed = get_available_reporting_integrations()
    for tracker in training_args.report_to:
        if tracker not in installed:
            found = f"installed: {', '.join(installed) or 'none'}"
            raise InputError(f"report_to: {tracker} is not installed ({found}); pip install it, or set report_to: none")
    defaults = type(model_args)()
    for name, value in asdict(model_args).items():
        if not name.startswith(_MODEL_FIELDS) and value != getattr(defaults, name):
            raise InputError(f"{name}: {value} is not supported by this recipe; leave it out")


def model_init_kwargs(model_args: ModelConfig) -> dict[str, Any]:
    """
    Keyword arguments of `from_pretrained` for the model that training starts from.

    Raises:
        `InputError`: `attn_implementation` is not one that the model can have here.
    """
    _check_attention(model_args)
    return {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "use_safetensors": True,
        "device_map": None,  # TRL's default, "auto", would spread the model over all GPUs that a process sees
    }


def _check_attention(model_args: ModelConfig) -> None:
    """Make the model without weights: a missing kernel would otherwise be noticed after the data is read, by a traceback."""
    import torch
    from transformers import AutoConfig

    from sightsound.models.family import family_of
    from sightsound.models.loading import student_class

    chosen = model_args.attn_implementation
    if chosen is None:
        return
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    architecture = student_class(model_args.model_name_or_path, model_args.model_revision)
    try:
        with without_zero3_init(), torch.device("meta"):
            architecture._from_config(family_of(config).model_config(config), attn_implementation=chosen)
    except (ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"attn_implementation {chosen} cannot be used here ({reason}); set it to sdpa or eager") from error


def lora_config(model_args: ModelConfig) -> PeftConfig | None:
    """
    The LoRA that `use_peft` and `lora_*` describe, checked by `check_lora_targets`; None without `use_peft`.

    Without `lora_target_modules` it is on those of the model's family.
    """
    from transformers import AutoConfig
    from trl import get_peft_config

    from sightsound.models.family import family_of

    if not model_args.use_peft:
        return None
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    family = family_of(config)
    if model_args.lora_target_modules is None:
        model_args.lora_target_modules = family.lora_target_modules
    lora = get_peft_config(model_args)
    if model_args.lora_target_modules == family.lora_target_modules:
        lora.exclude_modules = family.lora_exclude_modules
    check_lora_targets(model_args, lora)
    return lora


def check_lora_targets(model_args: ModelConfig, lora: PeftConfig) -> None:
    """
    Apply the LoRA to the model's modules, without loading weights.

    Raises:
        `InputError`: It matches no module, or modules outside the language model. The usual list of suffixes (`q_proj`, ...)
            matches the audio tower too, and vLLM cannot serve adapters of the tower.
    """
    import copy

    import torch
    from peft import get_peft_model
    from transformers import AutoConfig

    from sightsound.models.family import family_of
    from sightsound.models.loading import student_class

    targets = model_args.lora_target_modules
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    family = family_of(config)
    remedy = f"leave it out for the recipes' own, '{family.lora_target_modules}'"
    if family.trained_part:
        remedy = f"of this model only the {family.trained_part} is loaded and trained; {remedy}"
    with without_zero3_init(), torch.device("meta"):
        model = student_class(model_args.model_name_or_path, model_args.model_revision)(family.model_config(config))
    try:
        matched = get_peft_model(model, copy.deepcopy(lora)).base_model.targeted_module_names
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"lora_target_modules {targets} matches no module ({reason}); {remedy}") from error
    outside = [name for name in matched if not family.in_language_model(name)]
    if outside:
        found = f"matches {len(outside)} modules outside the language model (first: {outside[0]})"
        raise InputError(f"lora_target_modules {targets} {found}; {remedy}")
    if is_main_process():
        print(f"LoRA: {len(matched)} modules of the language model, 0 of the audio tower")
        if family.no_adapters_in_vllm:
            print(f"vLLM cannot serve the adapter, adapter/ ({family.no_adapters_in_vllm}); model/ is the merged model")

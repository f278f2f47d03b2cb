"""Model cards: the front matter that the Hub reads, and what a student was trained on, on which hardware and for how long."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.data.sources import is_hub_id, shown_source, split_revision
from sightsound.hub.cards import provenance, render_card, save_card
from sightsound.method.prompts import PROMPT_VERSION
from sightsound.method.selection import Funnel
from sightsound.models.family import family_of, family_of_processor
from sightsound.models.origins import OURS, UNKNOWN, base_licence, origin_on_hub
from sightsound.stage import LEDGER_FILE, read_settings
from sightsound.training.audio_rows import USED, not_of


if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments
    from trl import ModelConfig

TASK = "audio-text-to-text"  # the Hub's name of the task
# The packages whose versions can change the weights.
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def chosen_by(model: str) -> list[list[str]]:
    """
    The validation questions by which a local checkpoint, or one that it was trained from, was selected.

    Every stage records those of its base too, because the base may be deleted before the last checkpoint is published.

    Returns:
        `list[list[str]]`: Pairs of a dataset's fingerprint (or Hub id) and a split.
    """
    settings = read_settings(Path(model).parent) or {}
    inherited = settings.get("base_chosen_by") or []
    if settings.get("load_best_model_at_end"):
        return [*inherited, [split_revision(settings["audio"])[0], settings["validation_split"]]]
    return inherited


def hardware(training_args: TrainingArguments) -> str:
    """The device of this process, times the number of processes."""
    import torch

    processes = training_args.world_size
    if torch.cuda.is_available() and not training_args.use_cpu:
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"CPU, {processes} process{'es' if processes > 1 else ''}"


def training_time(state: TrainerState) -> str:
    """The time that the trainer logged at its end. It does not include the time before a resume."""
    seconds = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), None)
    return "not recorded" if seconds is None else f"{seconds / 60:.1f} min since the last start"


def count_outcomes(ledger: Path) -> tuple[Counter[str], dict[str, set[str]]]:
    """The number of rows with each outcome of a ledger, and the ids with each outcome."""
    import pyarrow.parquet as pq

    ids: dict[str, set[str]] = {}
    rows = pq.read_table(ledger).to_pylist()
    for row in rows:
        ids.setdefault(row["outcome"], set()).add(row["id"])
    return Counter(row["outcome"] for row in rows), ids


def training_funnel(
    selection: str, traces: str | None, ids: dict[str, set[str]], audio_contribution: str | None = None
) -> dict[str, int]:
    """
    The number of questions that are left after each step, down to those that were trained on.

    Args:
        selection (`str`): The arm.
        traces (`str`, *optional*): The corpus; None for the arm `ground_truth`.
        ids (`dict`): Ids per outcome of the run's ledger.
        audio_contribution (`str`, *optional*): Only questions with this one were used.
    """
    from sightsound.data.parquet import open_dataset

    steps = {}
    if traces is not None:
        funnel = Funnel()
        for row in open_dataset(traces, "train", "traces").select_columns(["teacher_answer", "unanimous", "outcome", "traces"]):
            funnel.add(row)
        steps = funnel.steps()
    selected = set[str]().union(*ids.values())
    steps[f"selected: arm `{selection}`"] = len(selected)
    if audio_contribution is not None:
        steps[f"audio contribution `{audio_contribution}`"] = len(selected - ids.get(not_of(audio_contribution), set()))
    return steps | {"used in training": len(ids.get(USED, ()))}


def write_model_card(
    folder: Path,
    template: str,
    *,
    base: str,
    base_revision: str | None,
    relation: str,
    tags: list[str],
    sources: dict[str, str | None],
    **values: Any,
) -> None:
    """
    Write the README.md of a model.

    Args:
        folder (`Path`): A finished checkpoint.
        template (`str`): File name in `sightsound/hub/templates/`.
        base (`str`): The model that training started from: folder or Hub id.
        base_revision (`str`, *optional*): The commit that the base was loaded from.
        relation (`str`): `"adapter"` or `"finetune"`. The Hub's `merge` means weights of several models: a LoRA that is merged
            into its base is a finetune.
        tags (`list[str]`): In addition to the project's.
        sources (`dict`): The training data, under the template's names. Those on the Hub become links.
        values: Further values of the template.
    """
    from huggingface_hub import ModelCardData

    origin = origin_on_hub(base)
    licence = base_licence(base, base_revision)
    on_hub = [split_revision(source)[0] for source in sources.values() if source and is_hub_id(source)]
    front = ModelCardData(
        library_name="peft" if relation == "adapter" else "transformers",
        pipeline_tag=TASK,
        language="en",
        license=licence.id if licence else "other",
        license_name=licence.name if licence else UNKNOWN,
        license_link=licence.link if licence else None,
        base_model=origin,
        base_model_relation=relation if origin else None,
        datasets=on_hub or None,
        tags=[OURS, "audio-question-answering", "reasoning", *tags],
    )
    text = render_card(
        template,
        **{name: source and shown_source(source) for name, source in sources.items()},
        base=shown_source(base),
        base_revision=base_revision,
        licence=licence,
        **values,
        **provenance(PACKAGES),
    )
    save_card(folder, front, text)


def write_student_card(
    folder: Path,
    *,
    method: str,
    script_args: Any,
    training_args: TrainingArguments,
    model_args: ModelConfig,
    trainer: Trainer,
) -> None:
    """
    Write the README.md of a trained student, or of its adapter.

    Args:
        folder (`Path`): A finished `model/` or `adapter/`, beside the run's `ledger.parquet`.
        method (`str`): `"SFT"` or `"GRPO"`.
        trainer (`Trainer`): After the training.
    """
    state, config = trainer.state, trainer.model.config
    loader = family_of(config).model_class(config)
    is_adapter = (folder / "adapter_config.json").is_file()
    outcomes, ids = count_outcomes(folder.parent / LEDGER_FILE)
    write_model_card(
        folder,
        "student.md",
        base=model_args.model_name_or_path,
        base_revision=model_args.model_revision,
        relation="adapter" if is_adapter else "finetune",
        tags=[method.lower(), *(["lora"] if model_args.use_peft else [])],
        sources={"traces": script_args.traces, "audio": script_args.audio},
        method=method,
        is_adapter=is_adapter,
        loader=loader.__name__ if loader else "AutoModelForMultimodalLM",
        window_s=family_of_processor(trainer.processing_class).window_s(trainer.processing_class),
        selection=script_args.selection,
        audio_contribution=script_args.audio_contribution,
        split=script_args.split,
        funnel=list(training_funnel(script_args.selection, script_args.traces, ids, script_args.audio_contribution).items()),
        rows_used=outcomes[USED],
        left_out=[(outcome, count) for outcome, count in outcomes.most_common() if outcome != USED],
        steps=state.global_step,
        best_step=state.best_global_step if training_args.load_best_model_at_end else None,
        best_accuracy=state.best_metric,
        num_validation=script_args.num_validation,
        learning_rate=training_args.learning_rate,
        lora={"r": model_args.lora_r, "alpha": model_args.lora_alpha} if model_args.use_peft else None,
        seed=training_args.seed,
        prompt_version=PROMPT_VERSION,
        hardware=hardware(training_args),
        training_time=training_time(state),
        results=[],
    )

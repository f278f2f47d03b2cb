"""Cards of models: the front matter that the Hub reads, and what a student was trained on, where and how."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.data.sources import REPO_ID, is_hub_id, shown_source, split_revision
from sightsound.hub.cards import provenance, render_card, save_card
from sightsound.method.prompts import PROMPT_VERSION
from sightsound.method.selection import Funnel
from sightsound.models.family import released_licence
from sightsound.stage import read_settings


if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments
    from trl import ModelConfig

TASK = "audio-text-to-text"  # the Hub's name for it
# What weights depend on.
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
USED = "used"


def origin_on_hub(base: str) -> str | None:
    """The Hub model that a base is, or that a recipe trained it from; None where folders are all that is known."""
    if is_hub_id(base):
        return base
    origin = (read_settings(Path(base).parent) or {}).get("model_name_or_path") or ""
    return origin if REPO_ID.fullmatch(origin) else None


def chosen_by(model: str) -> list[list[str]]:
    """
    The questions that a local checkpoint, or one that it was trained from, was chosen by: datasets' fingerprints and splits.

    Every stage hands on those of its base, which may be gone when the last checkpoint is published.
    """
    settings = read_settings(Path(model).parent) or {}
    own = (
        [[split_revision(settings["audio"])[0], settings["validation_split"]]] if settings.get("load_best_model_at_end") else []
    )
    return [*(settings.get("base_chosen_by") or []), *own]


def hardware(training_args: TrainingArguments) -> str:
    """What this process trains on, times how many processes there are."""
    import torch

    processes = training_args.world_size
    if torch.cuda.is_available() and not training_args.use_cpu:
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"CPU, {processes} process{'es' if processes > 1 else ''}"


def training_time(state: TrainerState) -> str:
    """As the trainer logged it when it ended: a run that was resumed has spent more."""
    seconds = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), None)
    return "not recorded" if seconds is None else f"{seconds / 60:.1f} min since the last start"


def count_outcomes(ledger: Path) -> tuple[Counter[str], dict[str, set[str]]]:
    """Rows per outcome of a stage's ledger, and the ids of each."""
    import pyarrow.parquet as pq

    ids: dict[str, set[str]] = {}
    rows = pq.read_table(ledger).to_pylist()
    for row in rows:
        ids.setdefault(row["outcome"], set()).add(row["id"])
    return Counter(row["outcome"] for row in rows), ids


def training_funnel(selection: str, traces: str | None, ids: dict[str, set[str]]) -> dict[str, int]:
    """
    Questions that are left after each step, from the first to those that were trained on.

    Args:
        selection (`str`): The arm.
        traces (`str`, *optional*): The corpus; without one the annotated answers were taken.
        ids (`dict`): Ids per outcome of the run's ledger.
    """
    from sightsound.data.parquet import open_dataset

    steps = {}
    if traces is not None:
        funnel = Funnel()
        for row in open_dataset(traces, "train", "traces").select_columns(["teacher_answer", "unanimous", "outcome", "traces"]):
            funnel.add(row)
        steps = funnel.steps()
    selected = set[str]().union(*ids.values())
    return steps | {f"selected: arm `{selection}`": len(selected), "used in training": len(ids.get(USED, ()))}


def write_model_card(
    folder: Path, template: str, base: str, relation: str, tags: list[str], sources: dict[str, str | None], **values: Any
) -> None:
    """
    README.md of a model.

    Args:
        folder (`Path`): A finished checkpoint.
        template (`str`): File name in `model_cards/`.
        base (`str`): What it was trained from: folder or Hub id.
        relation (`str`): `"adapter"` or `"finetune"`. The Hub's `merge` is for weights of several models: a LoRA that is
            merged into its base makes a finetune.
        tags (`list[str]`): Beside the project's.
        sources (`dict`): What it was trained on, by the template's names for them; those on the Hub are linked.
        values: What else the template names.
    """
    from huggingface_hub import ModelCardData

    origin = origin_on_hub(base)
    licence = released_licence(origin or "")
    on_hub = [split_revision(source)[0] for source in sources.values() if source and is_hub_id(source)]
    front: dict[str, Any] = {
        "library_name": "peft" if relation == "adapter" else "transformers",
        "pipeline_tag": TASK,
        "language": "en",
        **({"license": licence} if licence else {"license": "other", "license_name": "that-of-the-base-model"}),
        **({"base_model": origin, "base_model_relation": relation} if origin else {}),
        **({"datasets": on_hub} if on_hub else {}),
        "tags": ["sightsound-r1", "audio-question-answering", "reasoning", *tags],
    }
    text = render_card(
        template,
        **{name: source and shown_source(source) for name, source in sources.items()},
        base=shown_source(base),
        licence=licence,
        **values,
        **provenance(PACKAGES),
    )
    save_card(folder, ModelCardData(**front), text)


def write_student_card(
    folder: Path,
    stage: str,
    script_args: Any,
    training_args: TrainingArguments,
    model_args: ModelConfig,
    state: TrainerState,
    base_revision: str | None,
) -> None:
    """
    README.md of a trained student, or of its adapter.

    Args:
        folder (`Path`): A finished `model/` or `adapter/`, beside the run's `ledger.parquet`.
        stage (`str`): `"SFT"` or `"GRPO"`.
        state (`TrainerState`): Of the finished training.
        base_revision (`str`, *optional*): The commit that the base was loaded from.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    outcomes, ids = count_outcomes(folder.parent / "ledger.parquet")
    write_model_card(
        folder,
        "student.md",
        base=model_args.model_name_or_path,
        relation="adapter" if is_adapter else "finetune",
        tags=[stage.lower(), *(["lora"] if model_args.use_peft else [])],
        sources={"traces": script_args.traces, "audio": script_args.audio},
        stage=stage,
        is_adapter=is_adapter,
        base_revision=base_revision,
        selection=script_args.selection,
        split=script_args.split,
        funnel=list(training_funnel(script_args.selection, script_args.traces, ids).items()),
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

"""
The start and the end that all training scripts share.

    with open_run(script_args, training_args, model_args, inputs=("traces", "audio")) as training:
        if training.complete:
            return
        ...  # data and trainer
        trainer.train(resume_from_checkpoint=training.checkpoint)
        training.save_student(trainer, method="SFT")
        training.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sightsound.hub.publish import PublishArguments
from sightsound.method.prompts import PROMPT_VERSION
from sightsound.stage import LEDGER_FILE, fingerprint
from sightsound.training.distributed import (
    SharedStage,
    all_ranks_or_none,
    check_launch,
    describe_processes,
    is_main_process,
    on_main_process,
    save_trained,
)
from sightsound.training.recipe import ValidationArguments, check_unsupported_fields, take_publication


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments
    from trl import ModelConfig

# Where results go and how progress is reported: a rerun may change these.
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


def training_settings(training_args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that change the result, the processes and the version of the prompts, for `Stage`."""
    settings = {k: v for k, v in training_args.to_dict().items() if not k.startswith(_NOT_SETTINGS)}
    return settings | {"processes": describe_processes(training_args), "prompt_version": PROMPT_VERSION}


def pin_inputs(script_args: Any, model_args: ModelConfig, output_dir: str, inputs: Sequence[str]) -> str | None:
    """
    Resolve Hub datasets and the Hub model to commits, on the main process for all. `script_args` is changed in place.

    Returns:
        `str` or `None`: The model's commit; None for a folder.

    Raises:
        `InputError`: An input is neither a folder of the expected kind nor on the Hub.
    """
    from sightsound.hub.inputs import pin_datasets
    from sightsound.models.sources import pin_model

    def pin() -> tuple[list[str | None], str | None]:
        pin_datasets(script_args, inputs, output_dir)
        commit = pin_model("model_name_or_path", model_args.model_name_or_path, output_dir, model_args.model_revision)
        return [getattr(script_args, name) for name in inputs], commit

    sources, commit = on_main_process(pin)
    for name, source in zip(inputs, sources, strict=True):
        setattr(script_args, name, source)
    return commit


class TrainingRun(SharedStage):
    """
    The output folder of a training script. Made by `open_run`.

    Args:
        settings (`dict`): As for `Stage`.
        publication (`PublishArguments`): Where `finish` publishes the result.
        script_args, training_args, model_args: The arguments of the script, for the card.

    Attributes:
        checkpoint (`str`, *optional*): Where training resumes: the run's newest complete checkpoint, or the one that
            `--resume_from_checkpoint` names.
    """

    checkpoint: str | None = None

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        publication: PublishArguments,
        script_args: Any,
        training_args: TrainingArguments,
        model_args: ModelConfig,
    ):
        super().__init__(training_args.output_dir, settings)
        self.ledger = self.path / LEDGER_FILE
        self.publication = publication
        self.script_args, self.training_args, self.model_args = script_args, training_args, model_args

    def save_student(self, trainer: Trainer, *, method: str) -> None:
        """
        Write the log, `model/` (and `adapter/` of a LoRA), their cards and `trained_on.json`. Call on every rank.

        Args:
            method (`str`): `"SFT"` or `"GRPO"`, for the card.
        """
        from sightsound.training.audio_rows import USED
        from sightsound.training.card import count_outcomes, write_student_card
        from sightsound.training.trained_on import write_trained_on

        trainer.save_state()
        for folder in save_trained(trainer, self.path):
            write_student_card(
                folder,
                method=method,
                script_args=self.script_args,
                training_args=self.training_args,
                model_args=self.model_args,
                trainer=trainer,
            )
            write_trained_on(
                folder,
                audio=self.script_args.audio,
                split=self.script_args.split,
                used=count_outcomes(self.ledger)[1][USED],
                base=self.model_args.model_name_or_path,
            )

    def finish(self) -> None:
        """Mark the folder as complete, then publish it with `--push_to_hub`. Call on every rank."""
        super().finish()
        if is_main_process():
            self.publication.publish_student(self.path)


@contextmanager
def open_run(
    script_args: Any,
    training_args: TrainingArguments,
    model_args: ModelConfig,
    *,
    inputs: Sequence[str],
    not_recorded: Sequence[str] = (),
    check_processes: Callable[[TrainingArguments], None] = check_launch,
) -> Iterator[TrainingRun]:
    """
    Check the arguments, pin the inputs and lock the output folder. If the folder is complete, only publish it.

    Args:
        inputs (`Sequence[str]`): The fields of `script_args` that name datasets.
        not_recorded (`Sequence[str]`): Fields of `script_args` that the folder's settings leave out.
        check_processes (`Callable`): `check_launch`, or `check_single_process`.

    Raises:
        `InputError`: A check refused the run (`check_processes`, `check_unsupported_fields`, `pin_inputs`), or the folder was
            started with other settings.
    """
    from sightsound.models.origins import restriction_notice
    from sightsound.training.card import chosen_by
    from sightsound.training.checkpoints import checkpoint_to_resume

    with all_ranks_or_none():
        publication = take_publication(training_args)
        check_processes(training_args)
        check_unsupported_fields(training_args, model_args)
    commit = pin_inputs(script_args, model_args, training_args.output_dir, inputs)
    with all_ranks_or_none():
        own = {name: value for name, value in asdict(script_args).items() if name not in not_recorded}
        settings = {**own, **training_settings(training_args), **asdict(model_args)}
        settings |= {name: fingerprint(settings[name]) for name in (*inputs, "model_name_or_path")}
        settings["model_commit"] = commit
        if isinstance(script_args, ValidationArguments):
            settings["base_chosen_by"] = chosen_by(model_args.model_name_or_path) or None
    model_args.model_revision = commit or model_args.model_revision
    run = TrainingRun(
        settings, publication=publication, script_args=script_args, training_args=training_args, model_args=model_args
    )
    with run:
        if not run.complete:
            if is_main_process() and (notice := restriction_notice(model_args.model_name_or_path, model_args.model_revision)):
                print(notice)
            run.checkpoint = on_main_process(lambda: checkpoint_to_resume(training_args.resume_from_checkpoint, run.path))
        elif is_main_process():
            print(f"{run.path} is complete")
            publication.publish_student(run.path)
        yield run

"""
A training run of several processes: bad input ends all of them with one line, and only the main process writes files.

`accelerate launch --config_file accelerate_configs/ddp.yaml ...` starts a recipe once per GPU. Each process reads the inputs
itself. What is written, the main process writes while the others wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sightsound.cli import InputError
from sightsound.stage import Stage


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process writes files: rank 0, or the only one. Valid before `init_process_group` too."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_process_group() -> None:
    """Call on every rank at the same point; exiting without it can abort gloo, whose threads are running."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def all_ranks_or_none() -> Iterator[None]:
    """
    A part that all processes finish, or none: an `InputError` in any of them ends all, and the main process tells it.

    For what comes before training: processes that have begun to wait for each other elsewhere would wait for ever.
    """
    import torch.distributed as dist

    told: str | None = None
    try:
        yield
    except InputError as error:
        told = str(error)
    if dist.is_initialized():
        everyone: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, told)
        told = next((message for message in everyone if message is not None), None)
    if told is None:
        return
    leave_process_group()
    if is_main_process():
        raise InputError(told)
    raise SystemExit(2)


def on_main_process(action: Callable[[], T]) -> T:
    """Run `action` on the main process and give its result to all ranks; where it fails, all of them end."""
    import torch.distributed as dist

    result: list[Any] = [None]
    with all_ranks_or_none():
        if is_main_process():
            result[0] = action()
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    return result[0]


class SharedStage(Stage):
    """
    A `Stage` of several processes, which part at its end: the main one holds the folder, the others learn if it is complete.
    """

    def __enter__(self) -> SharedStage:
        enter = super().__enter__
        self.complete = on_main_process(lambda: enter().complete)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        if error is None:  # else the others may be anywhere
            leave_process_group()

    def finish(self) -> None:
        on_main_process(super().finish)
        self.complete = True


def describe_processes(training_args: TrainingArguments) -> str:
    """The number of processes and how they share the work, as `stage.json` records it: `8 x DEEPSPEED`."""
    return f"{training_args.world_size} x {training_args.distributed_state.distributed_type.value}"


def check_launch(training_args: TrainingArguments) -> None:
    """
    Refuse a launch that accelerate would silently replace by a different one.

    Raises:
        `InputError`: Fewer processes than the launcher was given, processes that would each train alone, or sharding that would
            not take place.
    """
    env, state = os.environ, training_args.distributed_state
    if training_args.world_size == 1:
        if int(env.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"{env['WORLD_SIZE']} processes were started, and without GPUs each would train alone; set use_cpu: true"
            )
        # `accelerate launch` sets MASTER_ADDR for several processes, and starts only one of them when MPI is missing.
        if "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env and "RANK" not in env:
            raise InputError(
                "accelerate was given several processes and started one; use accelerate_configs/ddp.yaml with "
                "--num_processes N, also on CPUs (with use_cpu: true in the recipe); for one process, unset MASTER_ADDR"
            )
    if training_args.n_gpu > 1:
        raise InputError(
            f"one process sees {training_args.n_gpu} GPUs and would train on one; set CUDA_VISIBLE_DEVICES=0, or use "
            "accelerate_configs/ddp.yaml with --num_processes"
        )
    if env.get("ACCELERATE_USE_DEEPSPEED") == "true" and state.distributed_type.value != "DEEPSPEED":
        raise InputError("the launch asks for DeepSpeed, which use_cpu: true would turn off; set use_cpu: false")
    if env.get("ACCELERATE_USE_FSDP") == "true" and state.device.type == "cpu":
        raise InputError(
            "the launch asks for FSDP, and without GPUs DDP would be used; choose accelerate_configs/ddp.yaml or cpu.yaml"
        )


def check_single_process(training_args: TrainingArguments) -> None:
    """
    Raises:
        `InputError`: Several processes were started for a script that trains on one.
    """
    if training_args.world_size > 1:
        raise InputError(f"expected one process, found {training_args.world_size}: this recipe trains on one")


@contextmanager
def without_zero3_init() -> Iterator[None]:
    """
    Inside it, transformers builds and loads complete models, also under ZeRO-3.

    With ZeRO-3's own initialisation, every process would have to take part, and each would hold only its share of the weights.
    """
    from transformers.integrations import deepspeed

    sharding = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = sharding


def save_trained(trainer: Trainer, folder: Path) -> list[Path]:
    """
    Write the trained `model/`, a complete checkpoint. If a LoRA was trained, write `adapter/` first and merge it into `model/`:
    GRPO loads its policy and the reference model of its KL term from `model/`.

    Call on every rank: under ZeRO-3 and FSDP each holds only a part of the weights.

    Returns:
        `list[Path]`: The folders that were written; on other ranks than the main one, an empty list.
    """
    from peft import PeftModel

    from sightsound.training.checkpoints import save_adapter, save_checkpoint

    model, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)

    def save() -> list[Path]:
        if not isinstance(model, PeftModel):
            save_checkpoint(model, processor, folder / "model", weights)
            return [folder / "model"]
        save_adapter(model, processor, folder / "adapter", weights)
        base = model.get_base_model()
        whole = type(base).from_pretrained(
            base.name_or_path, revision=base.config._commit_hash, dtype=base.dtype, use_safetensors=True
        )
        merged = PeftModel.from_pretrained(whole, str(folder / "adapter")).merge_and_unload()
        save_checkpoint(merged, processor, folder / "model")
        return [folder / "adapter", folder / "model"]

    with without_zero3_init():
        written = on_main_process(save)
    return written if is_main_process() else []

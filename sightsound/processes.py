"""
Several processes of one training run: bad input ends all of them with one line, and the main one owns the output folder.

A recipe is launched once per GPU (`accelerate launch --config_file accelerate_configs/ddp.yaml ...`). What all processes read
and compute alike they do each for itself; what is written, they leave to the main one and wait.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .cli import InputError, run
from .journal import Stage


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this is the process that writes; alone, it is. Known from the launcher, before the processes have met."""
    return int(os.environ.get("RANK", "0")) == 0


_left: list[Any] = []  # held until the process ends: see `run_one_of_several`


def part() -> None:
    """Leave the process group, which all do at the same point."""
    import torch.distributed as dist

    if dist.is_initialized():
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def run_one_of_several(main: Callable[[], None]) -> None:
    """
    `cli.run` for a process that may be one of several, which then ends without the interpreter being taken down.

    A thread of gloo takes the interpreter's lock to drop the tensors of a collective, some time after that has returned. If
    the interpreter is being taken down by then, Python ends the thread within a C++ destructor, and that aborts the process.
    Nor can the thread be waited for: that is left to the last who holds the group, often imported modules of torch, whose
    functions have it as a default. Where it is DDP, it waits with the lock in its hands, for ever; so the group is kept.
    """
    code = 0
    try:
        run(main)
    except SystemExit as end:
        if not (_met_others() and isinstance(end.code, int)):
            raise
        code = end.code
    except Exception:
        if not _met_others():
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    if _met_others():
        _end_at_once(code)


def _met_others() -> bool:
    """Whether this process is, or was, in a process group; answers without importing torch, or while that is half imported."""
    is_initialized = getattr(sys.modules.get("torch.distributed"), "is_initialized", None)
    return bool(_left) or (is_initialized is not None and is_initialized())


def _end_at_once(code: int) -> NoReturn:
    """Do what the interpreter does when it ends, up to where it is taken down."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons, as `multiprocessing` does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has left, or it is closed
            stream.flush()
    os._exit(code)


@contextmanager
def together() -> Iterator[None]:
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
    part()
    if is_main_process():
        raise InputError(told)
    raise SystemExit(2)


def on_main_process(action: Callable[[], T]) -> T:
    """What `action` returns on the main process, for all of them; the others wait for it. As `together`, where it fails."""
    import torch.distributed as dist

    result: list[Any] = [None]
    with together():
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
            part()

    def finish(self) -> None:
        on_main_process(super().finish)
        self.complete = True


def describe_processes(training_args: TrainingArguments) -> str:
    """How many processes train, and how they share the work, for `Stage`: `8 x DEEPSPEED`."""
    return f"{training_args.world_size} x {training_args.distributed_state.distributed_type.value}"


def refuse_another_launch_than_asked(training_args: TrainingArguments) -> None:
    """
    Refuse a launch of which accelerate would silently make another one.

    Raises:
        `InputError`: Fewer processes than asked for, processes that each train alone, or sharding that would not take place.
    """
    asked, found = os.environ, training_args.distributed_state
    if training_args.world_size == 1:
        if int(asked.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"{asked['WORLD_SIZE']} processes were started, and without GPUs each would train alone; set use_cpu: true"
            )
        # `accelerate launch` names a meeting place for several processes, and without MPI starts one all the same.
        if "ACCELERATE_MIXED_PRECISION" in asked and "MASTER_ADDR" in asked and "RANK" not in asked:
            raise InputError(
                "accelerate was asked for several processes and started one; use accelerate_configs/ddp.yaml with "
                "--num_processes N, also on CPUs (with use_cpu: true in the recipe); if one is meant, unset MASTER_ADDR"
            )
    if training_args.n_gpu > 1:
        raise InputError(
            f"one process sees {training_args.n_gpu} GPUs and would train on one; set CUDA_VISIBLE_DEVICES=0, or use "
            "accelerate_configs/ddp.yaml with --num_processes"
        )
    if asked.get("ACCELERATE_USE_DEEPSPEED") == "true" and found.distributed_type.value != "DEEPSPEED":
        raise InputError("DeepSpeed was asked for, and with use_cpu: true would not be used; set use_cpu: false")
    if asked.get("ACCELERATE_USE_FSDP") == "true" and found.device.type == "cpu":
        raise InputError(
            "FSDP was asked for, and without GPUs DDP would be used; choose accelerate_configs/ddp.yaml or cpu.yaml"
        )


def refuse_several_processes(training_args: TrainingArguments) -> None:
    """For recipes of models that one process trains in minutes."""
    if training_args.world_size > 1:
        raise InputError(f"expected one process, found {training_args.world_size}: this recipe trains on one")


@contextmanager
def whole_models() -> Iterator[None]:
    """Within it, transformers builds and loads models whole; under ZeRO-3 it would wait for all processes to take a part."""
    from transformers.integrations import deepspeed

    sharding = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = sharding


def save_trained(trainer: Trainer, folder: Path) -> list[Path]:
    """
    Write what was trained: `model/`, a whole checkpoint, and before it `adapter/` where a LoRA was trained.

    Every process has to call it: under ZeRO-3 and FSDP each holds a part of the weights.

    Returns:
        `list[Path]`: The folders that this process wrote: none, unless it is the main one.
    """
    from peft import PeftModel

    from .checkpoints import save_adapter, save_checkpoint

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

    with whole_models():
        written = on_main_process(save)
    return written if is_main_process() else []

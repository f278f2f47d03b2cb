"""
A training run of several processes: bad input ends all of them with one line, and only the main process writes files.

`accelerate launch --config_file accelerate_configs/ddp.yaml ...` starts a recipe once per GPU. Each process reads the inputs
itself. What is written, the main process writes while the others wait.
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

from sightsound.cli import InputError, run
from sightsound.stage import Stage


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process writes files: rank 0, or the only one. Valid before `init_process_group` too."""
    return int(os.environ.get("RANK", "0")) == 0


_left_groups: list[Any] = []  # kept until the process ends: see `run_distributed`


def leave_process_group() -> None:
    """Call on every rank at the same point."""
    import torch.distributed as dist

    if dist.is_initialized():
        _left_groups.append(dist.group.WORLD)
        dist.destroy_process_group()


def run_distributed(main: Callable[[], None]) -> None:
    """
    `cli.run` for a script that may run in several processes. One that was in a process group exits without Python's shutdown.

    gloo frees tensors in a background thread that takes the interpreter's lock. If Python is shutting down, this aborts the
    process. We cannot wait for that thread: only the last owner of the group can, which is often an imported torch module with
    the group as a default argument; DDP as the last owner would wait forever, because it holds the lock. So the group is kept
    and the process exits without Python's shutdown.
    """
    code = 0
    try:
        run(main)
    except SystemExit as end:
        if not (_was_in_a_group() and isinstance(end.code, int)):
            raise
        code = end.code
    except Exception:
        if not _was_in_a_group():
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    if _was_in_a_group():
        _end_at_once(code)


def _was_in_a_group() -> bool:
    """Whether this process is, or was, in a process group. Does not import torch, and works while torch is half imported."""
    is_initialized = getattr(sys.modules.get("torch.distributed"), "is_initialized", None)
    return bool(_left_groups) or (is_initialized is not None and is_initialized())


def _end_at_once(code: int) -> NoReturn:
    """Run the exit functions and flush the output, then exit without Python's shutdown."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons, as `multiprocessing` does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has ended, or it is closed
            stream.flush()
    os._exit(code)


@contextmanager
def all_ranks_or_none() -> Iterator[None]:
    """
    An `InputError` inside it, in any process, ends all processes; the main process reports it.

    For what comes before training. All ranks must reach its end: processes that wait for each other inside it wait forever.

    Raises:
        `InputError`: On the main process, the first one of any rank.
        `SystemExit`: On the other ranks, with code 2.
    """
    import torch.distributed as dist

    message: str | None = None
    try:
        yield
    except InputError as error:
        message = str(error)
    if dist.is_initialized():
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
        message = next((each for each in messages if each is not None), None)
    if message is None:
        return
    leave_process_group()
    if is_main_process():
        raise InputError(message)
    raise SystemExit(2)


def on_main_process(action: Callable[[], T]) -> T:
    """Run `action` on the main process and return its result on all ranks. If it raises `InputError`, all ranks end."""
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
    A `Stage` of several processes. The main process locks the folder, and all ranks get `complete`.

    All ranks leave the process group at its end.
    """

    def __enter__(self) -> SharedStage:
        enter = super().__enter__
        self.complete = on_main_process(lambda: enter().complete)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        if error is None:  # after an error the other ranks may be anywhere
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

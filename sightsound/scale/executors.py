"""
Start the ranks of a stage with datatrove's executors: on this machine, under Ray, or as Slurm jobs.

A rank is the same script with `--rank R` added; it can also be started by hand. `ranks.py` says what it does. It is a
separate process, not a function in a datatrove worker, because those workers are daemons (which may not start processes) and
are forked (so CUDA may fail).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.stage import RANKS_FOLDER


LOCAL, RAY, SLURM = "local", "ray", "slurm"
# A finished rank leaves these. Not `.parquet`: nothing that looks for data may find them before they are joined.
ROWS_PART, LEDGER_PART = "rows.part", "ledger.part"
JOB_FILE = "slurm_job"
EXTRA = "run pip install -e '.[scale]'"
_PARENT = "SIGHTSOUND_RANK_PARENT"  # process id of what started a rank
_WATCH_EVERY_S = 0.5


@dataclass(kw_only=True)
class ScaleArguments:
    executor: str = field(default=LOCAL, metadata={"help": "where the ranks run", "choices": [LOCAL, RAY, SLURM]})
    num_tasks: int = field(default=1, metadata={"help": "number of ranks that share the questions", "minimum": 1})
    workers: int | None = field(default=None, metadata={"help": "ranks at a time (default: all)", "minimum": 1})
    rank: int | None = field(default=None, metadata={"help": "process only this rank's slice, here", "minimum": 0})
    cpus_per_task: int = field(default=1, metadata={"help": "CPU cores per rank, for ray and slurm", "minimum": 1})
    mem_per_cpu_gb: int = field(default=2, metadata={"help": "memory per CPU core, for ray and slurm", "minimum": 1})
    gpus_per_task: int = field(default=0, metadata={"help": "GPUs per rank, for ray and slurm", "minimum": 0})
    slurm_partition: str | None = field(default=None, metadata={"help": "partition; required for slurm"})
    slurm_time: str = field(default="24:00:00", metadata={"help": "time limit of a rank, for slurm"})
    slurm_args: list[str] | None = field(default=None, metadata={"help": "further sbatch options, such as account=lab"})
    slurm_setup: str | None = field(
        default=None, metadata={"help": "shell line that each job runs first, such as one that starts a server on its node"}
    )

    def check_scale(self) -> None:
        """
        Raises:
            `InputError`: The flags contradict each other.
        """
        if self.rank is not None and self.rank >= self.num_tasks:
            raise InputError(f"--rank {self.rank} of --num_tasks {self.num_tasks}: ranks are numbered from 0")
        if self.executor != LOCAL and self.num_tasks == 1 and self.rank is None:
            raise InputError(f"--executor {self.executor} needs --num_tasks of at least 2: one rank would run here")
        if self.executor == SLURM and self.slurm_partition is None:
            raise InputError("--executor slurm needs --slurm_partition")
        bad = next((option for option in self.slurm_args or [] if "=" not in option), None)
        if bad is not None:
            raise InputError(f"--slurm_args {bad}: expected NAME=VALUE, such as account=lab")


# Not part of a stage's settings: how a run is divided does not change its result.
SCALE_FIELDS = tuple(each.name for each in fields(ScaleArguments))


def for_rank(value: str, args: ScaleArguments) -> str:
    """Fill `{rank}` into `http://gpu-{rank}:8000/v1`, if each rank has a server of its own."""
    return value.replace("{rank}", str(args.rank or 0))


def rank_folder(output_dir: str | Path, rank: int, num_tasks: int) -> Path:
    """Where a rank works. Its log is beside it: the same name and `.log`."""
    return Path(output_dir) / RANKS_FOLDER / f"{rank}-of-{num_tasks}"


def _log_file(output_dir: str | Path, rank: int, num_tasks: int) -> Path:
    folder = rank_folder(output_dir, rank, num_tasks)
    return folder.with_name(f"{folder.name}.log")


class RankFailed(Exception):
    """A rank ended with an exit code other than 0."""


@dataclass
class RankCommand:
    """
    A step of a datatrove pipeline that runs the current command for one rank.

    Args:
        command (`list[str]`): The command, without `--rank`.
        output_dir (`str`): Of the stage.
        working_dir (`str`): Where the user gave the command.
        raises (`bool`): Whether a failed rank fails its task. Slurm then shows it to users. Ray and the local executor would
            fill the terminal, and the local one would end the other ranks. `run_ranks` looks for the rank's files instead.
    """

    command: list[str]
    output_dir: str
    working_dir: str
    raises: bool = False

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        from multiprocess import parent_process  # datatrove's own fork of multiprocessing

        # The parent of a local worker is a fork server, which lives as long as its workers.
        started_by = parent_process()
        log_file = _log_file(self.output_dir, rank, world_size)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getppid()
        environment = {**os.environ, _PARENT: str(os.getpid())}
        with open(log_file, "ab") as log:
            process = subprocess.Popen(
                [*self.command, "--rank", str(rank)],
                cwd=self.working_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None and os.getppid() == parent and (started_by is None or started_by.is_alive()):
                    time.sleep(_WATCH_EVERY_S)
            finally:
                process.kill()
                process.wait()
        if process.returncode and self.raises:
            raise RankFailed(f"rank {rank} ended with {process.returncode}, see {log_file}")


def end_with_parent() -> None:
    """End this rank when its command ends. Else it would keep its lock and go on paying for results that nobody joins."""
    parent = os.environ.get(_PARENT)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY_S)
    os._exit(1)


def _missing(args: ScaleArguments, output_dir: str) -> list[int]:
    folders = (rank_folder(output_dir, rank, args.num_tasks) for rank in range(args.num_tasks))
    return [rank for rank, folder in enumerate(folders) if not (folder / LEDGER_PART).is_file()]


def run_ranks(args: ScaleArguments, output_dir: str) -> bool:
    """Start the ranks that have not finished. Returns whether all have."""
    missing = _missing(args, output_dir)
    if not missing:
        return True
    if args.executor == SLURM and shutil.which("sbatch") is None:
        raise InputError("--executor slurm: there is no sbatch here; run this command where jobs are submitted")
    logs = Path(output_dir).resolve() / RANKS_FOLDER / f"datatrove-of-{args.num_tasks}"
    # datatrove skips ranks by its own completion marks. Here only a rank's files count, so the marks are made to agree.
    for rank in range(args.num_tasks):
        mark = logs / "completions" / f"{rank:05d}"
        mark.unlink(missing_ok=True)
        if rank not in missing:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    script = str(Path(sys.argv[0]).resolve())
    step = RankCommand([sys.executable, script, *sys.argv[1:]], str(Path(output_dir).resolve()), os.getcwd())
    step.raises = args.executor == SLURM
    print(f"{len(missing)} of {args.num_tasks} ranks to run ({args.executor}); their logs: {output_dir}/{RANKS_FOLDER}/*.log")
    try:
        {LOCAL: _run_local, RAY: _run_ray, SLURM: _run_slurm}[args.executor](args, step, logs)
    except ModuleNotFoundError as error:
        if error.name not in ("datatrove", "ray"):
            raise
        raise InputError(f"--num_tasks {args.num_tasks} needs {error.name}; {EXTRA}") from error
    if args.executor == SLURM:
        print("submitted; once the jobs have ended, the same command joins what they wrote, or submits again what failed")
        return False
    missing = _missing(args, output_dir)
    if missing:
        log = _log_file(output_dir, missing[0], args.num_tasks)
        lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
        last_line = next((line for line in reversed(lines) if line.strip()), "its log is empty").removeprefix("error: ")
        raise InputError(f"rank {missing[0]}: {last_line} ({len(missing)} of {args.num_tasks} ranks not finished; log: {log})")
    return True


def _quiet_datatrove() -> None:
    """Keep datatrove's log out of the terminal. It also writes it to a file, and the ranks have logs of their own."""
    from datatrove.utils.logging import logger

    logger.remove()


def _run_local(args: ScaleArguments, step: RankCommand, logs: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor

    _quiet_datatrove()
    # It forks a process for its counters. That would survive a kill and hold the stage's lock for ever.
    command = os.getpid()
    os.register_at_fork(after_in_child=lambda: threading.Thread(target=_watch, args=(command,), daemon=True).start())
    LocalPipelineExecutor([step], tasks=args.num_tasks, workers=args.workers or -1, logging_dir=str(logs)).run()


def _run_ray(args: ScaleArguments, step: RankCommand, logs: Path) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage report
    import ray
    from datatrove.executor import RayPipelineExecutor

    _quiet_datatrove()
    resources = {
        "cpus_per_task": args.cpus_per_task,
        "mem_per_cpu_gb": args.mem_per_cpu_gb,
        "gpus_per_task": args.gpus_per_task,
    }
    # Connects to the cluster of RAY_ADDRESS or of this machine, or starts one here.
    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        executor = RayPipelineExecutor(
            [step], tasks=args.num_tasks, workers=args.workers or -1, logging_dir=str(logs), **resources
        )
        executor.run()
    finally:
        ray.shutdown()


def _run_slurm(args: ScaleArguments, step: RankCommand, logs: Path) -> None:
    from datatrove.executor import SlurmPipelineExecutor

    _quiet_datatrove()
    # A job runs `launch_pickled_pipeline`, which is installed beside this Python.
    setup = "\n".join(line for line in (f'export PATH="{Path(sys.executable).parent}:$PATH"', args.slurm_setup) if line)
    executor = SlurmPipelineExecutor(
        [step],
        tasks=args.num_tasks,
        workers=args.workers or -1,
        time=args.slurm_time,
        partition=args.slurm_partition,
        cpus_per_task=args.cpus_per_task,
        mem_per_cpu_gb=args.mem_per_cpu_gb,
        gpus_per_task=args.gpus_per_task,
        job_name=f"sightsound-{Path(step.command[1]).stem}",
        qos="",  # the default of the partition
        env_command=setup,
        sbatch_args=dict(option.split("=", 1) for option in args.slurm_args or []),
        logging_dir=str(logs),
    )
    _refuse_while_queued(logs)
    try:
        executor.run()
    except subprocess.CalledProcessError as error:  # its message is on the terminal already
        raise InputError(f"sbatch refused the job (exit code {error.returncode}); correct --slurm_... and run again") from error
    (logs / JOB_FILE).write_text(str(executor.job_id))


def _refuse_while_queued(logs: Path) -> None:
    """Do not submit ranks a second time while their job waits or runs."""
    file = logs / JOB_FILE
    if not file.is_file() or shutil.which("squeue") is None:
        return
    job = file.read_text()
    queued = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False).stdout
    if queued.strip():
        raise InputError(f"Slurm job {job} has not ended (squeue --jobs {job}); run this command again when it has")

"""A run of several processes trains as one does, writes once, and ends as one where it cannot go on."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sightsound.cli import InputError
from sightsound.stage import Stage
from sightsound.training.distributed import (
    SharedStage,
    all_ranks_or_none,
    check_launch,
    check_single_process,
    on_main_process,
)
from tests.support import tiny


REPO = tiny.REPO
MINIATURE = REPO / "recipes" / "miniature"
NO_DEEPSPEED = importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None
needs_deepspeed = pytest.mark.skipif(
    NO_DEEPSPEED, reason="no DeepSpeed, or no compiler for its CPU part; see `make setup-deepspeed`"
)

# What `recipes/*.py` do with a stage, without a model. `FAIL`: the process that finds its input bad.
MEMBER = """
import os, sys
import torch.distributed as dist
from sightsound.cli import InputError
from sightsound.training.distributed import SharedStage, all_ranks_or_none, is_main_process, on_main_process, run_distributed

def main():
    dist.init_process_group("gloo")
    with SharedStage(sys.argv[1], {"steps": 2}) as stage:
        print("complete" if stage.complete else "new", on_main_process(lambda: os.environ["RANK"]))
        with all_ranks_or_none():
            if os.environ["RANK"] == os.environ.get("FAIL"):
                raise InputError("no such thing")
        stage.finish()

run_distributed(main)
"""

# Where a process may be when it has trained: gloo's thread has tensors to drop and needs the interpreter for each of them.
TRAINED = """
import atexit, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from sightsound.training.distributed import SharedStage, run_distributed

def main():
    dist.init_process_group("gloo")
    atexit.register(print, "handlers ran")
    with SharedStage(sys.argv[1], {"steps": 2}) as stage:
        model = DistributedDataParallel(torch.nn.Linear(1, 1))
        stage.finish()
        tensors = [torch.zeros(1) for _ in range(20_000)]
        dist.group.WORLD.allreduce_coalesced(tensors).wait()

run_distributed(main)
"""

# One of them fails, and not because of its input, while the other waits for it.
BROKEN = """
import os
import torch.distributed as dist
from sightsound.training.distributed import run_distributed

def main():
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        raise RuntimeError("no such step")
    dist.barrier()

run_distributed(main)
"""


def run_members(folder: Path, script: str = MEMBER, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Two processes that meet as those of a launcher do, which here waits for both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    met = {**tiny._environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", **environment}
    command = [sys.executable, "-c", script, str(folder)]
    started = [
        subprocess.Popen(
            command, cwd=REPO, env={**met, "RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    return [subprocess.CompletedProcess(command, p.wait(60), *p.communicate()) for p in started]


def test_the_main_process_holds_the_folder_and_all_learn_what_it_found(tmp_path: Path) -> None:
    for found in ("new", "complete"):
        ended = run_members(tmp_path / "run")
        assert [(p.returncode, p.stdout, p.stderr) for p in ended] == [(0, f"{found} 0\n", "")] * 2, ended
    assert json.loads((tmp_path / "run" / "stage.json").read_text())["complete"]


def test_bad_input_of_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    ended = run_members(tmp_path / "run", FAIL="1")
    assert [p.returncode for p in ended] == [2, 2]
    assert [p.stderr for p in ended] == ["error: no such thing\n", ""]


def test_threads_of_gloo_that_still_drop_tensors_do_not_abort_the_end(tmp_path: Path) -> None:
    ended = run_members(tmp_path / "run", TRAINED)
    assert [(p.returncode, p.stdout) for p in ended] == [(0, "handlers ran\n")] * 2, ended
    assert not any("terminate called" in p.stderr for p in ended), ended


def test_a_process_that_fails_otherwise_ends_with_its_traceback_and_takes_the_others_along(tmp_path: Path) -> None:
    ended = run_members(tmp_path / "run", BROKEN)
    assert [p.returncode for p in ended] == [1, 1], ended
    assert "Traceback" in ended[1].stderr and ended[1].stderr.endswith("RuntimeError: no such step\n"), ended


def test_alone_a_process_is_the_main_one(tmp_path: Path) -> None:
    assert on_main_process(lambda: 3) == 3
    with pytest.raises(InputError, match="too long"), all_ranks_or_none():
        raise InputError("too long")
    with SharedStage(tmp_path, {}) as stage:
        stage.finish()
    with Stage(tmp_path, {}) as stage:
        assert stage.complete


def arguments(world_size: int, kind: str = "NO", device: str = "cpu") -> Any:
    state = SimpleNamespace(distributed_type=SimpleNamespace(value=kind), device=SimpleNamespace(type=device))
    return SimpleNamespace(world_size=world_size, distributed_state=state, n_gpu=1)


@pytest.mark.parametrize(
    ("environment", "found", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, arguments(1), "2 processes were started"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, arguments(1), "started one"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2"}, arguments(2, "MULTI_CPU"), "set use_cpu: false"),
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, arguments(2, "MULTI_CPU"), "asks for FSDP"),
    ],
)
def test_another_launch_than_asked_for_is_refused(environment, found, message, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    check_launch(arguments(1))
    check_launch(arguments(8, "MULTI_GPU", "cuda"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        check_launch(found)


def test_several_processes_are_refused_where_one_trains() -> None:
    check_single_process(arguments(1))
    with pytest.raises(InputError, match="expected one process, found 2"):
        check_single_process(arguments(2))


# From here on: the recipes, launched as a user does.

FLAGS = {
    "max_steps": 3,
    "warmup_steps": 0,
    "logging_steps": 1,
    # All are equally wrong, so the first checkpoint stays the best one and is what the run ends with.
    "eval_strategy": "steps",
    "eval_steps": 1,
    "num_validation": 3,
    "validation_max_tokens": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_accuracy",
}
RECIPES: dict[str, tuple[str, str, int, int, dict[str, Any]]] = {  # script, YAML, rows per step, questions at once, flags
    "sft": ("recipes/sft.py", "sft_tts_agfv.yaml", 8, 2, FLAGS),  # by two processes: one generates once more than the other
    "grpo": (
        "tests/support/fixed_grpo.py",
        "grpo_tts_agfv.yaml",
        16,
        4,
        {**FLAGS, "num_generations": 4, "max_completion_length": 8},
    ),
}
ON_CPU = {"zero2": {"use_cpu": False, "ddp_backend": "gloo"}, "zero3": {"use_cpu": False, "ddp_backend": "gloo"}}


def command_of(name: str, recipe: str, inputs: dict[str, Any], **changed: Any) -> list[str]:
    """`accelerate launch` with a file of accelerate_configs: one process, or two on the CPU; the rows of a step are shared."""
    script, config, rows, asked_at_once, flags = RECIPES[recipe]
    processes = 1 if name == "cpu" else 2
    sizes = {"per_device_train_batch_size": rows // processes, "per_device_eval_batch_size": asked_at_once // processes}
    flags = {**inputs, **flags, **sizes, **ON_CPU.get(name, {}), **changed}
    given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", f"accelerate_configs/{name}.yaml"]
    if processes > 1:
        launch += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    return [*launch, script, "--config", str(MINIATURE / config), *given]


def environment() -> dict[str, str]:
    # DeepSpeed builds its CPU part with ninja.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Else accelerate names the CPU of a process `cpu:0`, a device that an optimizer's checkpoint cannot be loaded to.
    cpu = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    return {**tiny._environment(), "PATH": path, "PYTHONPATH": str(REPO), **cpu}


def launch(name: str, recipe: str, inputs: dict[str, Any], **changed: Any) -> subprocess.CompletedProcess[str]:
    command = command_of(name, recipe, inputs, **changed)
    return subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def inputs(questions, tiny_dataset: Path, student_checkpoint: Path, tmp_path_factory) -> dict[str, Any]:
    corpus = tiny.write_corpus(questions, tmp_path_factory.mktemp("corpus"))
    return {"traces": corpus, "audio": tiny_dataset, "model_name_or_path": student_checkpoint}


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory) -> Callable[[str], Path]:
    """Recipe -> its run in one process."""

    @cache
    def run_of(recipe: str) -> Path:
        run = tmp_path_factory.mktemp(recipe) / "run"
        done = launch("cpu", recipe, inputs, output_dir=run)
        assert done.returncode == 0, done.stderr[-3000:]
        return run

    return run_of


def log_of(run: Path) -> list[dict[str, float]]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "grad_norm", "kl", "reward", "rewards/accuracy_reward/mean", "eval_accuracy", "eval_unanswered")
    return [{name: entry[name] for name in names if name in entry} for entry in log]


def check_same_run(run: Path, expected: Path) -> None:
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    found, log = log_of(run), log_of(expected)
    assert len(found) == len(log) > 3
    for ours, theirs in zip(found, log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=2e-6)
    AutoProcessor.from_pretrained(run / "model")
    weights = Qwen2AudioForConditionalGeneration.from_pretrained(run / "model").state_dict()
    expected_weights = Qwen2AudioForConditionalGeneration.from_pretrained(expected / "model").state_dict()
    assert weights.keys() == expected_weights.keys()
    # Adam divides by the size of a gradient: where that is rounding, so is the step, but never a whole one.
    apart = max((weights[name] - expected_weights[name]).abs().max().item() for name in weights)
    assert apart < 2e-5, apart


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero2", marks=[pytest.mark.storm, needs_deepspeed]),
        pytest.param("zero3", marks=[pytest.mark.slow, needs_deepspeed]),
    ],
)
def test_two_processes_train_as_one_does(name: str, recipe: str, alone, inputs, tmp_path: Path) -> None:
    done = launch(name, recipe, inputs, output_dir=tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    check_same_run(tmp_path / "run", alone(recipe))
    assert len(tiny.read_ledger(tmp_path / "run")) == len(tiny.read_ledger(alone(recipe)))
    assert done.stdout.count("24 used" if recipe == "sft" else "12 used") == 1, "said and written once"


@pytest.mark.slow
def test_bad_input_of_a_launch_is_one_line_and_stands_last(inputs, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of another origin")
    done = launch("ddp", "sft", inputs, output_dir=tmp_path)
    assert done.returncode != 0
    message = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(set(message)) == 1 and "holds files already" in message[0]
    assert len(message) == 2 and done.stderr.rstrip().endswith(message[0]), (
        "once where it happened, and below the launcher's table"
    )
    assert "exitcode  : 2" in done.stderr


@pytest.mark.slow
def test_a_killed_process_takes_the_others_along_and_a_rerun_goes_on(inputs, alone, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = subprocess.Popen(
        command_of("ddp", "sft", inputs, output_dir=run),
        cwd=REPO,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while launcher.poll() is None and not (run / "checkpoint-1" / "trainer_state.json").exists():
        time.sleep(0.01)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    (victim,) = (child for child, variables in ranks.items() if b"RANK=1" in variables)
    os.kill(int(victim), signal.SIGKILL)
    assert launcher.wait(60) != 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (run / "model").exists(), "killed before it had finished"
    done = launch("ddp", "sft", inputs, output_dir=run)
    assert done.returncode == 0, done.stderr[-3000:]
    check_same_run(run, alone("sft"))

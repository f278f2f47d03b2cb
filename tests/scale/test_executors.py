"""A stage in ranks: the same files as one run, whoever starts the ranks and however often it is killed meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sightsound.cli import InputError
from sightsound.scale.executors import ScaleArguments, for_rank, rank_folder
from sightsound.scale.ranks import slice_of
from tests.support.tiny import REPO, read_ledger, run_script


# Ray starts a cluster of its own: a matter of the storm.
LOCAL_AND_RAY = [pytest.param("local", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.storm)]


STAGE = "tests/support/ranked_stage.py"
NUM_QUESTIONS = 22
WITH_A_CLIP = {str(i) for i in range(NUM_QUESTIONS) if i % 5 != 4}


def files_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def run_stage(folder: Path, **flags) -> subprocess.CompletedProcess:
    return run_script(STAGE, output_dir=folder / "out", asked=folder / "asked", **flags)


def asked_of(folder: Path) -> Counter:
    return Counter((folder / "asked").read_text().split())


def assert_done(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert_done(run_stage(folder))
    assert set(asked_of(folder)) == WITH_A_CLIP
    return files_of(folder / "out")


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("align", [1, 4, 16])
def test_slices_are_all_rows_in_order_and_cut_between_calls(num_tasks, align):
    for num_rows in (0, 1, 15, 16, 17, 100):
        rows = list(range(num_rows))
        slices = [slice_of(num_rows, rank, num_tasks, align) for rank in range(num_tasks)]
        assert [row for part in slices for row in rows[part]] == rows
        assert all(part.start % align == 0 or not rows[part] for part in slices)
        sizes = [len(rows[part]) for part in slices]
        assert max(sizes) - min(sizes) <= 2 * align, "shared evenly, as far as calls allow"


def test_ranks_started_by_hand_are_joined_to_what_one_run_writes(one_run, tmp_path):
    # Without datatrove: nothing is left to start when all parts are there.
    for rank in (2, 0, 1):
        assert_done(run_stage(tmp_path, num_tasks=3, rank=rank))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".ranks"], "the output folder is the command's"
    assert_done(run_stage(tmp_path, num_tasks=3))
    assert files_of(tmp_path / "out") == one_run, "stage.json too: the next stage cannot tell the difference"
    assert asked_of(tmp_path) == Counter(WITH_A_CLIP), "nothing was asked twice"


def test_a_finished_rank_does_nothing_and_one_without_questions_is_fine(tmp_path):
    flags = {"num_questions": 6, "num_tasks": 3}
    for rank in range(3):  # two calls: one rank has nothing to do
        assert_done(run_stage(tmp_path, **flags, rank=rank))
    part = rank_folder(tmp_path / "out", 1, 3) / "rows.part"
    before = part.stat().st_mtime_ns
    assert_done(run_stage(tmp_path, **flags, rank=1, stop_at=3))
    assert part.stat().st_mtime_ns == before
    assert_done(run_stage(tmp_path, **flags))
    ledger = [(entry["id"], entry["outcome"], entry["detail"]) for entry in read_ledger(tmp_path / "out")]
    gone = ("4", "missing_media", "no clip of 4")
    assert ledger == [gone if i == 4 else (str(i), "not_verified", None) for i in range(6)]


def test_what_was_paid_for_is_kept_when_the_number_of_ranks_changes(one_run, tmp_path):
    assert run_stage(tmp_path, stop_at=13).returncode == 2  # questions 0 to 11 are answered by one run
    assert_done(run_stage(tmp_path, num_tasks=2, rank=1))  # 12 to 21 by one of two ranks
    assert asked_of(tmp_path) == Counter(WITH_A_CLIP)
    assert_done(run_stage(tmp_path, num_tasks=3, rank=0))
    assert_done(run_stage(tmp_path, num_tasks=3, rank=1))
    assert_done(run_stage(tmp_path))  # and one run again, which joins nothing but has all requests
    assert files_of(tmp_path / "out") == one_run
    assert asked_of(tmp_path) == Counter(WITH_A_CLIP), "no question was asked a second time"


def test_ranks_of_other_settings_are_neither_joined_nor_adopted(tmp_path):
    for rank in (0, 1):
        assert_done(run_stage(tmp_path, num_tasks=2, rank=rank, num_questions=12))
    for flags in ({"num_tasks": 2}, {}, {"num_tasks": 3, "rank": 0}):
        done = run_stage(tmp_path, **flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "0-of-2 was made with other settings (num_questions); delete it" in done.stderr


def test_a_rank_that_runs_keeps_other_divisions_out(tmp_path):
    process = start_stage(tmp_path, num_tasks=2, rank=0, delay_s=60)
    try:
        wait_for(rank_folder(tmp_path / "out", 0, 2) / "journal.jsonl")
        done = run_stage(tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "0-of-2 is being written by a rank of an earlier command; wait for it or stop it" in done.stderr
        done = run_stage(tmp_path, num_tasks=2, rank=0)
        assert done.returncode == 2 and "is being written by another process" in done.stderr
    finally:
        process.kill()
        process.wait()


def start_stage(folder: Path, **flags) -> subprocess.Popen:
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    command = [sys.executable, str(REPO / STAGE), "--output_dir", str(folder / "out"), "--asked", str(folder / "asked"), *given]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(file: Path, text: str = "", timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {file}"
        time.sleep(0.02)


def test_a_rank_ends_with_what_started_it(tmp_path):
    command = [sys.executable, "-c", STARTER, str(REPO / STAGE), str(tmp_path)]
    starter = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO)})
    log = tmp_path / "out" / ".ranks" / "0-of-2.log"
    wait_for(log, "process ")
    rank = int(log.read_text().split("process ")[1].split()[0])
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{rank}").exists():
        assert time.monotonic() < deadline, "the rank goes on alone"
        time.sleep(0.05)


STARTER = """
import sys
from sightsound.scale.executors import RankCommand
script, folder = sys.argv[1:]
flags = ["--output_dir", f"{folder}/out", "--asked", f"{folder}/asked", "--num_tasks", "2", "--delay_s", "100"]
RankCommand([sys.executable, "-u", script, *flags], f"{folder}/out", folder)(None, 0, 2)
"""


def test_parts_that_do_not_make_the_whole_are_refused(tmp_path):
    for rank in (0, 1):
        assert_done(run_stage(tmp_path, num_tasks=2, rank=rank))
    first, second = (rank_folder(tmp_path / "out", rank, 2) for rank in (0, 1))
    second.rename(second.with_name("kept"))
    os.system(f"cp -r {first} {second}")
    done = run_stage(tmp_path, num_tasks=2)
    assert done.returncode == 2
    assert "1-of-2 holds question 0 in the wrong order; delete that folder and run again" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rank": 2, "num_tasks": 2}, "--rank 2 of --num_tasks 2: ranks are numbered from 0"),
        ({"executor": "slurm", "num_tasks": 2}, "--executor slurm needs --slurm_partition"),
        ({"executor": "ray"}, "--executor ray needs --num_tasks of at least 2: one rank would run here"),
        ({"slurm_args": ["account"]}, "--slurm_args account: expected NAME=VALUE"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        ScaleArguments(**flags).check_scale()


def test_a_rank_may_have_a_server_of_its_own():
    assert for_rank("http://gpu-{rank}:8000/v1", ScaleArguments(num_tasks=4, rank=3)) == "http://gpu-3:8000/v1"
    assert for_rank("http://shared:8000/v1", ScaleArguments(num_tasks=4, rank=3)) == "http://shared:8000/v1"


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "datatrove.py").write_text('raise ModuleNotFoundError("not here", name="datatrove")')
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    done = run_stage(tmp_path, num_tasks=2)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--num_tasks 2 needs datatrove; run pip install -e '.[scale]'" in done.stderr


def test_two_ranks_write_what_one_run_writes(one_run, tmp_path):
    done = run_stage(tmp_path, num_tasks=2)
    assert_done(done)
    assert files_of(tmp_path / "out") == one_run
    assert asked_of(tmp_path) == Counter(WITH_A_CLIP)
    assert done.stdout.startswith("2 of 2 ranks to run (local); their logs: ")


@pytest.mark.parametrize("executor", LOCAL_AND_RAY)
def test_a_rank_that_fails_is_told_in_its_own_words_and_run_again(executor, one_run, tmp_path):
    done = run_stage(tmp_path, num_tasks=2, executor=executor, stop_at=17)
    assert done.returncode == 2, done.stderr
    assert "rank 1: the server does not know 17 (1 of 2 ranks not finished; log: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    done = run_stage(tmp_path, num_tasks=2, executor=executor)
    assert_done(done)
    assert files_of(tmp_path / "out") == one_run
    assert asked_of(tmp_path) == Counter(WITH_A_CLIP)


@pytest.mark.parametrize("executor", LOCAL_AND_RAY)
def test_a_killed_command_takes_its_ranks_along_and_continues(executor, one_run, tmp_path):
    process = start_stage(tmp_path, num_tasks=2, executor=executor, delay_s=6.0)
    try:
        wait_for(tmp_path / "asked", "\n", timeout_s=400)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(5)
    before = asked_of(tmp_path)
    time.sleep(8)
    assert asked_of(tmp_path) == before, "somebody still asks"
    assert len(before) < len(WITH_A_CLIP), "nothing was left to continue"
    assert_done(run_stage(tmp_path, num_tasks=2, executor=executor))
    assert files_of(tmp_path / "out") == one_run
    # A call that was being answered when the kill came is made once more by each rank.
    assert sum((asked_of(tmp_path) - Counter(WITH_A_CLIP)).values()) <= 8


FAKE_SLURM = {
    # Runs each task of the array at once, as Slurm would on nodes: the script, with the variables that it gives.
    "sbatch": """script="${@: -1}"
for option in "$@"; do case "$option" in --export=*) export "${option##*,}";; esac; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" >> "$FAKE_LOG" 2>&1
done
echo Submitted batch job 1""",
    "srun": """while [ "$1" != launch_pickled_pipeline ] && [ "$1" != merge_stats ]; do shift; done
exec "$@\"""",
    "scontrol": "echo here",
}


@pytest.mark.slow
def test_the_slurm_job_script_runs_every_rank(one_run, tmp_path, monkeypatch):
    flags = {"num_tasks": 3, "executor": "slurm", "slurm_partition": "gpu", "slurm_args": "account=lab", "workers": 2}
    flags |= {"gpus_per_task": 1, "slurm_time": "02:00:00", "slurm_setup": "export SERVER=started"}
    done = run_stage(tmp_path, **flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("there is no sbatch here; run this command where jobs are submitted")
    assert not (tmp_path / "out").exists(), "the corrected command may use the folder"
    (tmp_path / "bin").mkdir()
    for name, body in FAKE_SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "slurm.log"))
    done = run_stage(tmp_path, **flags)
    assert_done(done)
    assert "submitted; once the jobs have ended, the same command joins what they wrote" in done.stdout
    script = (tmp_path / "out" / ".ranks" / "datatrove-of-3" / "launch_script.slurm").read_text()
    for line in ("partition=gpu", "account=lab", "array=0-2%2", "gpus=1", "time=02:00:00", "job-name=sightsound-ranked_stage"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nexport SERVER=started\n" in script
    assert not (tmp_path / "out" / "ledger.parquet").exists()
    shutil.rmtree(rank_folder(tmp_path / "out", 1, 3))  # as if its job had not run yet
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/bash\necho 1 gpu sightsound PD")
    squeue.chmod(0o755)
    done = run_stage(tmp_path, **flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Slurm job 1 has not ended" in done.stderr
    squeue.write_text("#!/bin/bash\n")
    assert_done(run_stage(tmp_path, **flags))
    assert_done(run_stage(tmp_path, **flags))
    assert files_of(tmp_path / "out") == one_run, (tmp_path / "slurm.log").read_text()

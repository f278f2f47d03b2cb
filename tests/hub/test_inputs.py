"""Inputs from the Hub: pinned to a commit that is recorded, and one line where the Hub refuses or does not answer."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from dataset_builders import traces, verdicts
from sightsound.cli import InputError
from sightsound.data import kinds
from sightsound.stage import Stage, read_settings
from tests.support import tiny
from tests.support.hub_routes import STRANGER
from tests.support.loopback_hub import LoopbackHub, client_environment, loopback_hub


__all__ = ["loopback_hub"]  # the fixture

OLD, NEW = "a" * 40, "b" * 40


def moved_on_hub(name: str, checkpoint: Path) -> str:
    """A Hub model in the cache, with two commits, of which the newer one is `main`."""
    repository = Path(constants.HF_HUB_CACHE) / f"models--alice--{name}"
    for commit in (OLD, NEW):
        shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    return f"alice/{name}"


def revision_of(folder: Path, column: str) -> str:
    return tiny.read_rows(folder)[0][column]


def test_a_teacher_of_the_hub_is_loaded_at_the_commit_that_is_recorded(tiny_dataset, tiny_world, teacher_checkpoint, tmp_path):
    flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "model": moved_on_hub("teacher", teacher_checkpoint)}
    flags |= {"num_traces": 1, "max_tokens": 2, "limit": 1}
    typed = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    args = traces.parse_arguments(traces.TracesArguments, "", [*typed, "--output_dir", str(tmp_path / "resumed")])
    with Stage(args.output_dir, traces.settings_of(args, OLD)):
        pass  # a run that was killed, before main moved
    for name, commit in (("fresh", NEW), ("resumed", OLD)):
        done = tiny.run_script("dataset_builders/traces.py", **flags, output_dir=tmp_path / name)
        # A model of random weights may answer nothing: its rows are written all the same.
        assert "no_answer" in done.stdout, done.stderr
        assert read_settings(tmp_path / name)["model_commit"] == commit
        assert revision_of(tmp_path / name, "teacher_revision") == commit
        assert revision_of(tmp_path / name, "teacher") == "alice/teacher"


def test_a_checker_of_the_hub_is_loaded_at_the_commit_that_is_recorded(tiny_dataset, questions, student_checkpoint, tmp_path):
    said = [tiny.trace("<think>I hear a bell.</think><answer>bell</answer>", 0, "I hear a bell.")]
    folder = tiny.write_traces([tiny.trace_row(question, said) for question in questions], tmp_path / "traces")
    flags = {"dataset": tiny_dataset, "traces": folder, "checker": moved_on_hub("checker", student_checkpoint)}
    flags |= {"max_tokens": 2, "limit": 1, "num_retries": 0}
    typed = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    args = verdicts.parse_arguments(verdicts.VerdictsArguments, "", [*typed, "--output_dir", str(tmp_path / "resumed")])
    with Stage(args.output_dir, verdicts.settings_of(args, OLD)):
        pass
    for name, commit in (("fresh", NEW), ("resumed", OLD)):
        done = tiny.run_script("dataset_builders/verdicts.py", **flags, output_dir=tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert read_settings(tmp_path / name)["model_commit"] == commit
        assert revision_of(tmp_path / name, "checker_revision") == commit


# `huggingface_hub` and `datasets` read their environment once: each case is a process of its own.
OPEN = """
import json, sys
from sightsound.cli import run
from sightsound.hub.inputs import pin_dataset
from sightsound.data.parquet import commit_of, open_dataset
def main():
    for given in sys.argv[2:]:
        source = pin_dataset("dataset", given, sys.argv[1])
        rows = open_dataset(source, "train")
        print(json.dumps([source, commit_of(rows), len(rows)]))
run(main)
"""


@pytest.fixture
def opened(loopback_hub: LoopbackHub, questions, tmp_path):
    """Open datasets as a stage does, against a Hub that has `alice/traces`, with two commits."""
    said = [tiny.trace("<think>a</think><answer>b</answer>", 0, "a")]

    def commit(rows: int) -> str:
        folder = tiny.write_traces([tiny.trace_row(q, said) for q in questions[:rows]], tmp_path / f"commit-{rows}")
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        loopback_hub.change("alice/traces", files)
        loopback_hub.repos["datasets/alice/traces"].private = False
        return loopback_hub.repos["datasets/alice/traces"].resolve("main")

    def run(*sources: str, token: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "home").mkdir(exist_ok=True)
        given = client_environment(loopback_hub, tmp_path / "home", token) | environment
        command = [sys.executable, "-c", OPEN, str(tmp_path / "out"), *sources]
        return subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)

    run.commit = commit
    return run


def test_a_dataset_of_the_hub_keeps_its_commit_when_main_moves(opened, tmp_path):
    old = opened.commit(2)
    source, commit, rows = json.loads(opened("alice/traces").stdout)
    assert (source, commit, rows) == (f"alice/traces@{old}", old, 2)
    with Stage(tmp_path / "out", {"dataset": source, "seed": 0}):
        pass
    new = opened.commit(3)
    assert json.loads(opened("alice/traces").stdout) == [source, old, 2], "what the stage was started with"
    message = [
        json.loads(line)
        for line in opened(f"alice/traces@{new}", "alice/traces@main", f"alice/traces@{old}").stdout.split("\n")[:-1]
    ]
    assert message == [[f"alice/traces@{new}", new, 3]] * 2 + [[source, old, 2]]
    # Offline, `datasets` would take the newest that it has for the one that is asked for.
    unknown = opened(f"alice/traces@{'c' * 40}", HF_HUB_OFFLINE="1")
    assert unknown.returncode == 2 and "the cache has no dataset of that name" in unknown.stderr


REFUSED = {
    "an expired token on a public dataset": (
        "hf_expiredExpiredExpired", "alice/traces", {}, "Invalid credentials .*; the token of HF_TOKEN is mistyped, expired or"
    ),
    "a dataset that is not there": (None, "alice/gone", {}, "no dataset of that name, or it is private: set HF_TOKEN"),
    "a private one, with another's token": (STRANGER, "alice/private", {}, "no dataset of that name, or this token may not"),
    "a revision that is not there": (None, "alice/traces@v2", {}, "alice/traces has no revision v2 on the Hub"),
    "no network": (None, "alice/gone", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "no folder alice/gone here, and the Hub"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_hub_that_refuses_is_one_line_without_the_token(case, opened, loopback_hub):
    opened.commit(1)
    loopback_hub.change("alice/private", {"README.md": b""})
    token, source, environment, message = REFUSED[case]
    done = opened(source, token=token, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert token is None or token not in done.stderr


CARD = """
import json, sys
from sightsound.cli import run
from sightsound.hub.inputs import front_matter_of
from sightsound.data.parquet import open_dataset
def main():
    if sys.argv[1] == "open":
        open_dataset(sys.argv[2], "train")
    print(json.dumps(front_matter_of(sys.argv[2]).get("license")))
run(main)
"""


def test_the_card_of_a_dataset_of_the_hub_is_read_at_its_commit(opened, loopback_hub, tmp_path):
    environment = client_environment(loopback_hub, tmp_path / "home", None)

    def read(source: str, *, first: str = "", **offline: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "home").mkdir(exist_ok=True)
        command = [sys.executable, "-c", CARD, first, source]
        return subprocess.run(command, env=environment | offline, cwd=tmp_path, capture_output=True, text=True, check=False)

    old = opened.commit(1)
    card = (tmp_path / "commit-1" / "README.md").read_text()
    loopback_hub.change("alice/traces", {"README.md": card.replace("---\n", "---\nlicense: unknown\n", 1).encode()})
    unknown = read("alice/traces@main", HF_HUB_OFFLINE="1")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1), unknown.stderr
    assert "the card of alice/traces@main cannot be read" in unknown.stderr
    new = loopback_hub.repos["datasets/alice/traces"].resolve("main")
    assert [read(f"alice/traces@{commit}").stdout for commit in (new, old)] == ['"unknown"\n', "null\n"]
    shutil.rmtree(tmp_path / "home")
    opened_first = read(f"alice/traces@{new}", first="open")
    assert opened_first.stdout == '"unknown"\n', opened_first.stderr
    again = read(f"alice/traces@{new}", HF_HUB_OFFLINE="1")
    assert again.stdout == '"unknown"\n', "it came with the dataset"
    loopback_hub.change("alice/bare", {"data.txt": b""})
    loopback_hub.repos["datasets/alice/bare"].private = False
    assert read("alice/bare").stdout == "null\n"


def test_columns_of_another_type_are_named(questions, tmp_path):
    from datasets import Dataset

    rows = [{**tiny.trace_row(questions[0], []), "traces": "none"}]
    for name in ("teacher_answer", "checker", "verdict_mode"):
        rows[0].setdefault(name, None)
    features = Dataset.from_list(rows).features
    with pytest.raises(InputError, match=r"^x does not hold teacher traces: its column traces is of another type .*traces.py$"):
        kinds.check_kind(features, "x", kinds.TRACES)

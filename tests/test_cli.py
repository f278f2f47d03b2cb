"""Command lines: what a user types, and what is said when it cannot be used."""

import ast
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import evaluation.__main__
from evaluation.__main__ import COMMANDS as EVALUATION
from sightsound.cli import InputError, parse_arguments, read_json, run
from tests.support.tiny import REPO


@dataclass
class Arguments:
    output_dir: str
    limit: int | None = field(default=None, metadata={"minimum": 1})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy; 50 % of runs use 1"})
    controls: list[str] | None = field(default=None, metadata={"choices": ["silent", "swapped"]})
    sizes: list[int] | None = None
    num_retries: int = field(default=2, metadata={"minimum": 0})
    verbose: bool = False


def test_flags_become_typed_fields():
    flags = "--output_dir out --limit 3 --temperature 0 --controls silent swapped --sizes 4 5 --verbose"
    assert parse_arguments(Arguments, "", flags.split()) == Arguments(
        "out", 3, 0.0, ["silent", "swapped"], [4, 5], verbose=True
    )


def test_flags_that_are_not_given_keep_their_defaults():
    assert parse_arguments(Arguments, "", ["--output_dir", "out"]) == Arguments("out")


def test_help_shows_the_description_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(Arguments, "First line.\n\n    indented command", ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "First line.\n\n    indented command" in shown
    assert "0 is greedy; 50 % of runs use 1 (default: 1.0)" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output_dir"),
        (["--output_dir", "o", "--limit", "many"], "invalid int value: 'many'"),
        (["--output_dir", "o", "--limit", "0"], "--limit: expected at least 1, found 0"),
        (["--output_dir", "o", "--num_retries", "-1"], "--num_retries: expected at least 0, found -1"),
        (["--output_dir", "o", "--controls", "loud"], "invalid choice: 'loud'"),
        (["--output_dir", "o", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_usage_is_one_line_on_stderr_and_exit_code_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(Arguments, "", flags)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1, said


def test_bad_input_is_one_line_on_stderr_and_exit_code_2(capsys):
    def main():
        raise InputError("expected a folder")

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert (stopped.value.code, capsys.readouterr().err) == (2, "error: expected a folder\n")


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


SCRIPT = "import os, sys\nfrom sightsound.cli import run\nsys.stdin.read()\nrun(lambda: {})"


@pytest.mark.parametrize(
    "body",
    [
        "[print('x' * 9_999) for _ in range(99)]",
        "print('x')",  # written when all is done
        "sys.exit(print('x'))",  # as `--help` does
    ],
)
def test_who_stops_reading_is_told_nothing(body):
    command = [sys.executable, "-c", SCRIPT.format(body)]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        started.stdout.close()  # before anything is written
        started.stdin.close()
        assert started.stderr.read() == b""
    assert started.returncode == 1


def test_another_pipe_that_breaks_keeps_its_traceback():
    body = "[os.close(pipe[0]) or os.write(pipe[1], b'x') for pipe in [os.pipe()]]"
    command = [sys.executable, "-c", SCRIPT.format(body)]
    done = subprocess.run(command, cwd=REPO, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_json_that_cannot_be_read_is_bad_input(tmp_path):
    (tmp_path / "cut.json").write_text('[{"id": 1')
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "long.json").write_text("9" * 5_000)
    (tmp_path / "good.json").write_text('["é"]')
    (tmp_path / "bom.json").write_text('["é"]', encoding="utf-8-sig")
    assert read_json(str(tmp_path / "good.json")) == read_json(str(tmp_path / "bom.json")) == ["é"]
    with pytest.raises(InputError, match="does not exist"):
        read_json(str(tmp_path / "none.json"))
    for name in ("cut", "latin", "deep", "long"):
        with pytest.raises(InputError, match="is not JSON that can be read"):
            read_json(str(tmp_path / f"{name}.json"))
    with pytest.raises(InputError):
        read_json(str(tmp_path))


BAD_INPUT = {
    "no annotations": (["--media_dir", "."], "no annotations: give --train_annotations"),
    "missing annotations": (["--media_dir", ".", "--train_annotations", "none.json"], "none.json does not exist"),
    "broken annotations": (["--media_dir", ".", "--train_annotations", "broken.json"], "broken.json is not JSON"),
    "not a list": (["--media_dir", ".", "--train_annotations", "object.json"], "expected a list of annotations"),
    "missing media folder": (["--media_dir", "nowhere", "--train_annotations", "list.json"], "nowhere is not a folder"),
    "a folder as annotations": (["--media_dir", ".", "--train_annotations", "."], "error: "),
    "no processes": (["--media_dir", ".", "--train_annotations", "list.json", "--num_proc", "0"], "num_proc"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_a_script_says_what_is_wrong_in_one_line(case, tmp_path):
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    flags, message = BAD_INPUT[case]
    script = str(REPO / "dataset_builders" / "avqa_audio.py")
    done = subprocess.run(
        [sys.executable, script, *flags, "--output_dir", "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_every_command_of_the_evaluation_has_an_example():
    for name in EVALUATION:
        assert f"python -m evaluation {name} " in evaluation.__main__.__doc__


def test_an_unknown_command_of_the_evaluation_is_refused():
    done = subprocess.run([sys.executable, "-m", "evaluation", "guess"], cwd=REPO, capture_output=True, text=True, check=False)
    message = f"error: unknown command 'guess'; expected one of {', '.join(EVALUATION)}\n"
    assert (done.returncode, done.stderr) == (2, message)


SCRIPTS = [
    str(path.relative_to(REPO))
    for pattern in ("dataset_builders/*.py", "recipes/*.py", "recipes/miniature/*.py")
    for path in sorted(Path(REPO).glob(pattern))
]
COMMANDS = [*SCRIPTS, "-m evaluation", *(f"-m evaluation {name}" for name in EVALUATION)]


@pytest.mark.parametrize("folder", ["dataset_builders", "evaluation", "recipes", "tests/benchmarks"])
def test_help_shows_commands_as_they_stand_in_the_file(folder):
    """A backslash at a line's end joins it with the next, unless the docstring is raw."""
    for path in (REPO / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert (ast.get_docstring(ast.parse(text), clean=False) or "") in text, f"{path}: make the docstring raw"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_at_once(command):
    least_s = float("inf")
    # CPU time of the child and the best of three: other work on the machine must not decide.
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [sys.executable, *command.split(), "--help"]
        done = subprocess.run(arguments, cwd=REPO, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.returncode, done.stderr) == (0, "")
        assert "python" in done.stdout or "accelerate launch" in done.stdout
        if command.removeprefix("-m evaluation ") in EVALUATION:
            assert done.stdout.startswith(f"usage: python {command} [-h]"), "what a user has to type"
        least_s = min(least_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert least_s < 0.5

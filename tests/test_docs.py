"""Nothing in the documentation is dead: links, files, scripts, their flags, make targets, and imports in Python blocks."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.tiny import REPO, _environment


PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("recipes/*/README.md")])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names files as they were
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"`((?:sightsound|dataset_builders|recipes|evaluation|accelerate_configs|tests|docs)/[\w./-]*)`")
# What a page may call beside this project's own programs.
OTHERS = {"vllm", "uv", "pip", "hf", "source", "cd", "pre-commit", "python", "bash"}
# Lists of every field that a recipe takes are TRL's; these come from it.
TRL = {"recipes/sft.py": "SFTConfig", "recipes/grpo.py": "GRPOConfig", "recipes/verifier.py": "SFTConfig"}
LAUNCH_FLAGS = {"--config_file", "--num_processes", "--main_process_port"}


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page's shell blocks, without variables that are set before them."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            parts = shlex.split(line, comments=True)
            while parts and re.match(r"[A-Z_0-9]+=", parts[0]):
                parts.pop(0)
            if parts:
                yield parts


@cache
def accepted_flags(*program: str) -> set[str]:
    """What `--help` lists and, of a recipe, the fields of TRL's dataclasses that it takes as well."""
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=REPO, env=_environment(), capture_output=True, text=True, check=True
    )
    flags = set(re.findall(r"--[a-z][\w-]*", done.stdout))
    if program[0] in TRL:
        import trl

        fields = {*getattr(trl, TRL[program[0]]).__dataclass_fields__, *trl.ModelConfig.__dataclass_fields__}
        flags |= {f"--{name}" for name in fields}
    return flags


def check_flags(program: tuple[str, ...], given: list[str]) -> list[str]:
    flags = [part.split("=")[0] for part in given if part.startswith("--")]
    return [f"{' '.join(program)} has no {flag}" for flag in flags if flag not in accepted_flags(*program)]


def faults_of(parts: list[str]) -> list[str]:
    """Why a command cannot be typed as it stands; nothing where it can."""
    name, *rest = parts
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
        return [f"make has no target {part}" for part in rest if "=" not in part and part not in targets]
    if name == "accelerate":
        position = next(i for i, part in enumerate(rest) if part.endswith(".py"))
        launch, script, given = rest[1:position], rest[position], rest[position + 1 :]
        unknown = [part for part in launch if part.startswith("--") and part not in LAUNCH_FLAGS]
        return [f"accelerate launch has no {part}" for part in unknown] + check_flags((script,), given) + missing(rest)
    if name == "python" and rest[0] == "-m" and rest[1] == "evaluation":
        return check_flags(("-m", "evaluation", rest[2]), rest[3:])
    if name == "python" and rest[0] == "-m" and rest[1].startswith(("tests.", "sightsound.")):
        return check_flags(("-m", rest[1]), rest[2:])
    if name == "python" and rest[0].endswith(".py"):
        script = rest[0].removeprefix("../../../")  # of a page that changes into the demo's folder
        return missing([script]) or check_flags((script,), rest[1:])
    return missing(rest) if name in OTHERS else [f"{name} is no program of this project"]


def missing(parts: list[str]) -> list[str]:
    """Files of the project that a command names and that are not there."""
    ours = ("recipes/", "dataset_builders/", "accelerate_configs/", "evaluation/", "tests/")
    return [f"{part} is not there" for part in parts if part.startswith(ours) and not (REPO / part).exists()]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_and_files_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"link to {target}"
        assert not anchor or anchor in anchors(linked), f"link to {target}"
    for name in NAMED_FILE.findall(text.replace("/NAME.py", "/")):  # a file that the reader is to write
        assert (REPO / name).exists() or any(REPO.glob(name)), f"names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_commands_of_a_page_can_be_typed(page: Path) -> None:
    assert [fault for parts in commands(page) for fault in faults_of(parts)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_python_of_a_page_compiles_and_its_imports_are_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_the_readme_is_short_and_every_page_of_docs_is_linked_from_it_or_from_one_that_is() -> None:
    readme = REPO / "README.md"
    assert readme.stat().st_size < 12_000
    reached, left = set(), [readme]
    while left:
        page = left.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8")))
        left += [(page.parent / target).resolve() for target in targets if target and not target.startswith("http")]
    assert {page.resolve() for page in REPO.glob("docs/*.md")} <= reached


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make tset", "make has no target tset"),
        ("python dataset_builders/trace.py --dataset d", "dataset_builders/trace.py is not there"),
        ("python dataset_builders/traces.py --datset d", "dataset_builders/traces.py has no --datset"),
        ("python -m evaluation run --benchmarks avqa", "-m evaluation run has no --benchmarks"),
        ("accelerate launch --config_file accelerate_configs/x.yaml recipes/sft.py", "accelerate_configs/x.yaml is not there"),
        ("accelerate launch recipes/sft.py --config recipes/miniature/x.yaml", "recipes/miniature/x.yaml is not there"),
        ("accelerate launch recipes/grpo.py --learning_rat 1", "recipes/grpo.py has no --learning_rat"),
        ("sightsound run", "sightsound is no program of this project"),
    ],
)
def test_a_dead_command_is_named(line: str, fault: str) -> None:
    assert faults_of(shlex.split(line)) == [fault]

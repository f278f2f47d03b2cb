"""
The layers: a file imports only from lower layers or from its own folder, and never in a circle.

Imports inside functions count too: they are there for speed, not to hide a dependency.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from sightsound.models.family import student_families
from tests.support.tiny import REPO


# The three files of layer 1, which every program and every stage uses. They are treated as one folder, "base".
BASE = ("cli", "launchers", "locks")
LAYERS = {
    "base": 1,
    "stage": 2,
    "data": 2,
    "method": 3,
    "hub": 3,
    "benchmarks": 4,
    "models": 4,
    "scale": 4,
    "engines": 5,
    "building": 5,
    "training": 6,
}
# Programs: each may use all of `sightsound`, and none of the others.
PROGRAMS = ("dataset_builders", "recipes", "evaluation")


# Where a student family may be named: its file and what families share, and the models of the paper's tables, which are data.
# Recipes of a student, tests and documentation name theirs too; they are not looked at.
NEUTRAL = ("sightsound", "evaluation", "dataset_builders", "accelerate_configs", "recipes/*.py")
MAY_NAME_FAMILIES = ("sightsound/models/", "evaluation/reporting/tables/")


def module_of(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path, modules: set[str]) -> Iterator[str]:
    """The project's modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: line {node.lineno}: imports are absolute"
            inner = {f"{node.module}.{name.name}" for name in node.names} & modules
            yield from inner
            if node.module in modules and len(inner) < len(node.names):
                yield str(node.module)


def read_imports(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the project that it imports."""
    files = {module_of(file, root): file for top in ("sightsound", *PROGRAMS) for file in (root / top).rglob("*.py")}
    return {module: set(imports_of(file, set(files))) - {module} for module, file in files.items()}


def folder_of(module: str) -> str:
    parts = module.split(".")
    folder = parts[0] if parts[0] != "sightsound" or len(parts) == 1 else parts[1]
    return "base" if folder in BASE else folder


def upward_imports(imports: dict[str, set[str]]) -> list[str]:
    """Each import from a higher layer, or from another folder of the same layer."""
    found = []
    for module, imported in sorted(imports.items()):
        for other in sorted(imported):
            folder, other_folder = folder_of(module), folder_of(other)
            if folder == other_folder or other_folder == "sightsound":  # the package itself holds only its version
                continue
            layer = LAYERS.get(folder, max(LAYERS.values()) + 1)
            if other_folder in PROGRAMS or LAYERS[other_folder] >= layer:
                found.append(f"{module} (layer {layer}) imports {other} (layer {LAYERS.get(other_folder, 'of programs')})")
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_folder_has_a_layer() -> None:
    folders = {folder_of(module) for module in read_imports(REPO)} - {"sightsound", *PROGRAMS}
    assert folders == set(LAYERS)


def test_no_file_imports_from_a_higher_layer() -> None:
    assert upward_imports(read_imports(REPO)) == []


def test_no_imports_form_a_circle() -> None:
    assert circle(read_imports(REPO)) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("data/late.py", "def f():\n    from sightsound.training import late", "sightsound.data.late (layer 2) imports"),
        ("stage.py", "import sightsound.data.late", "sightsound.stage (layer 2) imports sightsound.data.late (layer 2)"),
        ("method/late.py", "from evaluation import run", "sightsound.method.late (layer 3) imports evaluation.run"),
    ],
)
def test_an_import_from_a_higher_layer_is_named(file: str, line: str, found: str, tmp_path: Path) -> None:
    for module in ("sightsound/training/late.py", "sightsound/data/late.py", "evaluation/run.py", f"sightsound/{file}"):
        path = tmp_path / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line if module.endswith(file) else "")
    assert [each.startswith(found) for each in upward_imports(read_imports(tmp_path))] == [True]


def test_a_circle_is_named(tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        path = tmp_path / "sightsound" / "data" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from sightsound.data.{other} import x")
    assert set(circle(read_imports(tmp_path))) == {"sightsound.data.one", "sightsound.data.two"}


# Not `benchmarks`: one file is one benchmark, and nothing else lists them.
SIGHTSOUND_FOLDERS = [f"sightsound/{name}" for name in LAYERS if name not in ("base", "stage", "benchmarks")]
EVALUATION_FOLDERS = [f"evaluation/{name}" for name in ("running", "scoring", "reporting")]


@pytest.mark.parametrize("name", [*SIGHTSOUND_FOLDERS, *EVALUATION_FOLDERS])
def test_the_docstring_of_a_folder_describes_each_of_its_files(name: str) -> None:
    folder = REPO / name
    described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    # A student family is found by its `FAMILY`, and nothing else lists it.
    listed = (file for file in folder.glob("*.py") if "\nFAMILY = " not in file.read_text(encoding="utf-8"))
    files = {file.name for file in listed} - {"__init__.py"}
    assert {name for name in files if f"- `{name}`: " not in described} == set()


def families_named(root: Path) -> list[str]:
    """The lines outside the allowed places that name a family, as `FILE:LINE: NAME`."""
    modules = {type(family).__module__.rpartition(".")[2] for family in student_families()}
    names = [module.replace("_", "[-_. ]?") for module in sorted(modules)]
    pattern = re.compile("|".join([*names, r"(?<![a-z])omni(?![a-z])"]), re.IGNORECASE)
    files = (file for place in NEUTRAL for top in root.glob(place) for file in ([top] if top.is_file() else top.rglob("*")))
    found = []
    for file in sorted(files):
        path = file.relative_to(root).as_posix()
        if file.suffix not in (".py", ".yaml", ".md", ".txt", ".html", ".sh") or path.startswith(MAY_NAME_FAMILIES):
            continue
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        found += [f"{path}:{number}: {name[0]}" for number, line in lines if (name := pattern.search(line))]
    return found


def test_a_student_family_is_named_in_its_own_file_only() -> None:
    assert families_named(REPO) == []


@pytest.mark.parametrize(
    "name", ["Qwen2-Audio", "Qwen2AudioProcessor", "qwen2_5_omni", "Qwen2.5-Omni-7B", "Omni", "AudioFlamingo3"]
)
def test_a_family_named_elsewhere_is_found(name: str, tmp_path: Path) -> None:
    for path in ("sightsound/engines/late.py", "sightsound/models/late.py", "evaluation/reporting/tables/late.yaml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"# As of\n# {name}.\n")
    assert [found.split(": ")[0] for found in families_named(tmp_path)] == ["sightsound/engines/late.py:2"]

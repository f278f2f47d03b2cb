"""
The house: a file imports only from lower floors or from its own folder, and never in a circle.

Imports inside functions count too: they are late for speed, not to hide a dependency.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.tiny import REPO


# The three files of floor 1 are one room: what every program and every stage stands on.
GROUND = ("cli", "launchers", "locks")
FLOORS = {
    "ground": 1,
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


def room_of(module: str) -> str:
    parts = module.split(".")
    room = parts[0] if parts[0] != "sightsound" or len(parts) == 1 else parts[1]
    return "ground" if room in GROUND else room


def climbing(imports: dict[str, set[str]]) -> list[str]:
    """Each import that goes up, or sideways into another room."""
    found = []
    for module, imported in sorted(imports.items()):
        for other in sorted(imported):
            room, other_room = room_of(module), room_of(other)
            if room == other_room or other_room == "sightsound":  # the package itself holds only its version
                continue
            floor = FLOORS.get(room, max(FLOORS.values()) + 1)
            if other_room in PROGRAMS or FLOORS[other_room] >= floor:
                found.append(f"{module} (floor {floor}) imports {other} (floor {FLOORS.get(other_room, 'of programs')})")
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in read_imports(REPO)} - {"sightsound", *PROGRAMS}
    assert rooms == set(FLOORS)


def test_no_import_climbs() -> None:
    assert climbing(read_imports(REPO)) == []


def test_no_imports_form_a_circle() -> None:
    assert circle(read_imports(REPO)) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("data/late.py", "def f():\n    from sightsound.training import late", "sightsound.data.late (floor 2) imports"),
        ("stage.py", "import sightsound.data.late", "sightsound.stage (floor 2) imports sightsound.data.late (floor 2)"),
        ("method/late.py", "from evaluation import run", "sightsound.method.late (floor 3) imports evaluation.run"),
    ],
)
def test_an_import_that_climbs_is_named(file: str, line: str, found: str, tmp_path: Path) -> None:
    for module in ("sightsound/training/late.py", "sightsound/data/late.py", "evaluation/run.py", f"sightsound/{file}"):
        path = tmp_path / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line if module.endswith(file) else "")
    assert [each.startswith(found) for each in climbing(read_imports(tmp_path))] == [True]


def test_a_circle_is_named(tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        path = tmp_path / "sightsound" / "data" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from sightsound.data.{other} import x")
    assert set(circle(read_imports(tmp_path))) == {"sightsound.data.one", "sightsound.data.two"}


# Not `benchmarks`: one file is one benchmark, and nothing else lists them.
SIGHTSOUND_ROOMS = [f"sightsound/{name}" for name in FLOORS if name not in ("ground", "stage", "benchmarks")]
EVALUATION_ROOMS = [f"evaluation/{name}" for name in ("running", "scoring", "reporting")]


@pytest.mark.parametrize("room", [*SIGHTSOUND_ROOMS, *EVALUATION_ROOMS])
def test_a_room_says_what_each_of_its_files_is_for(room: str) -> None:
    folder = REPO / room
    described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    # A student family is found by its `FAMILY`, and nothing else lists it.
    listed = (file for file in folder.glob("*.py") if "\nFAMILY = " not in file.read_text(encoding="utf-8"))
    files = {file.name for file in listed} - {"__init__.py"}
    assert {name for name in files if f"- `{name}`: " not in described} == set()

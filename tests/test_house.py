"""The house itself: imports run down only, every file says what it is for, and the public names exist."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import exitwise
from exitwise import families, methods

ROOT = Path(exitwise.__file__).parent
FLOORS = [
    {"errors"},
    {"register", "machine", "few", "trace", "stack", "criteria", "heads", "reading"},
    {"models", "train", "cost"},
    {"run", "lm"},
    {"calibrate", "method", "families"},
    {"methods", "teach"},
    {"kept"},
    {"engine"},
    {"inspect", "bench", "monitor", "serve", "pretrained", "cutting"},
    {"cli", "__main__"},
]
FILES = sorted(p for p in ROOT.rglob("*.py"))


def floor(room):
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def room_of(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(path):
    """Rooms of this package that a file imports at any depth of indentation, except for type checking alone."""
    depth = len(path.relative_to(ROOT).parts) - 1
    tree = ast.parse(path.read_text())
    only_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    spared = {id(n) for block in only_types for n in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in spared:
            if node.level:
                up = node.level - 1
                if up < depth:
                    continue
                yield from [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            elif node.module and node.module.split(".")[0] == "exitwise":
                parts = node.module.split(".")
                yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names]


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py" or p.parent != ROOT], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down_only(path):
    here = floor(room_of(path))
    assert here is not None, f"{path} is in no known room: add it to FLOORS"
    for room in imported(path):
        there = floor(room)
        assert there is None or there <= here, f"{path.relative_to(ROOT)} (floor {here}) imports {room} (floor {there})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_has_a_sign_on_its_door(path):
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said and len(said.split("\n\n")[0]) > 20


def test_nothing_below_the_engine_names_a_method_or_a_family():
    names = {*methods.names(), *families.names()} - {"random", "static", "never"}
    for path in FILES:
        room = room_of(path)
        if room in {"methods", "families", "models"} or (floor(room) or 0) >= floor("engine"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path.relative_to(ROOT)} names {node.value!r}"


def test_every_public_name_exists():
    for name in exitwise.__all__:
        assert getattr(exitwise, name) is not None


def test_importing_the_package_does_not_import_torch():
    code = "import sys, exitwise; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_methods_and_families_load_by_name():
    for name in methods.names():
        assert methods.load(name).about
    for name in families.names():
        assert families.load(name).about

"""The house: rooms that import one way, through one another's faces, and modules without cycles."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import ftmatrix

PACKAGE = Path(ftmatrix.__file__).parent

ROOMS = (
    "records",
    "errors",
    "text",
    "statistics",
    "roles",
    "machine",
    "data",
    "models",
    "lm",
    "arms",
    "spec",
    "cell",
    "forecast",
    "store",
    "study",
    "reporting",
    "process",
    "sweep",
    "serving",
    "doctor",
    "pretraining",
    "api",
    "cli",
)
"""In the order in which a reader may meet them: each imports only from those above it."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """What a module imports of the package, anywhere in it: a module's name, and a name in it (or empty)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ftmatrix":
            yield from ((str(node.module).partition(".")[2], alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (alias.name.partition(".")[2], "") for alias in node.names if alias.name.split(".")[0] == "ftmatrix"
            )


def imported_room(module: str, name: str) -> str:
    return (module or name).split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    here = ROOMS.index(room(path))
    wrong = [found for found in imports(path) if ROOMS.index(imported_room(*found)) > here]
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_is_entered_by_its_face(path: Path) -> None:
    wrong = [
        (module, name)
        for module, name in imports(path)
        if name and "." in module and imported_room(module, name) != room(path)  # without a name: for what it loads
    ]
    assert not wrong


def test_no_two_modules_need_each_other() -> None:
    names = {name_of(path) for path in modules()}
    needs = {
        name_of(path): {
            found
            for module, name in imports(path)
            for found in (f"{module}.{name}", module)
            if found in names and "." in found and found != name_of(path)
        }
        for path in modules()
    }
    assert len(list(TopologicalSorter(needs).static_order())) >= len(needs)


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in modules()} == set(ROOMS)


def test_the_tour_shows_every_room() -> None:
    tour = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1] for line in tour.splitlines() if line.startswith("| `") and line.count("|") == 4]
    assert [name for line in lines for name in re.findall(r"`(\w+)`", line)] == list(ROOMS)


@pytest.mark.parametrize("face", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.pyi")))
def test_a_face_has_all_that_it_shows(face: str) -> None:
    shown = import_module(f"ftmatrix.{face}")
    assert shown.__all__
    assert [
        name for name in shown.__all__ if isinstance(getattr(shown, name), type(ast))
    ] == []  # no module in its place


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_module_is_too_long_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250


def test_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "peft", "mlflow", "pandas", "sklearn", "matplotlib"}
    light = {"cli", "spec", "arms", "data", "models", "machine", "errors", "roles", "records", "text"}
    for path in modules():
        if room(path) in light or name_of(path) in ("lm.settings", "lm.framing"):
            top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
            names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
            assert not names & heavy, path

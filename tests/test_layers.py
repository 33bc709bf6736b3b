"""Imports run one way: a module imports only from a lower layer."""

import ast
from pathlib import Path

import pytest

import ftmatrix

PACKAGE = Path(ftmatrix.__file__).parent

LAYERS = (
    ("records", "roles", "text"),
    ("errors", "host", "files"),
    ("foreign",),
    ("resident",),
    ("hardware", "hub", "checkpoints", "metrics", "statistics", "gguf_files"),
    ("wheels",),
    ("settings", "meters", "distributed"),
    ("methods", "models", "data"),
    ("framing", "scores", "tied"),
    ("batches",),
    ("training", "stability", "drift", "pretraining"),
    ("evaluation", "memory", "resumption", "secondary"),
    ("serving",),
    ("served",),
    ("config",),
    ("preparation", "studies", "grids"),
    ("runner", "forecasting", "cards"),
    ("artifacts", "journal", "ownership"),
    ("child", "recording"),
    ("isolation",),
    ("tracking",),
    ("delivery", "registry"),
    ("recovery",),
    ("preload", "preload_adapters", "comparison", "interrupts"),
    ("table", "rates", "answers"),
    ("claims", "advice", "display", "results_file"),
    ("planning", "leases"),
    ("engines",),
    ("cluster",),
    ("plan_table", "scheduling"),
    ("report",),
    ("running",),
    ("sweep", "doctor"),
    ("overrides", "composition"),
    ("cli",),
)
ROOMS = {name: level for level, names in enumerate(LAYERS) for name in names}

BELOW_BY_NEED = {("child", "artifacts"), ("child", "preload"), ("child", "preload_adapters")}
"""Imported inside the child process only, where the parent never goes."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ftmatrix."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "ftmatrix":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ftmatrix.")}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    wrong = {name for name in imported(path) if name != here and ROOMS[name] >= ROOMS[here]}
    assert {(here, name) for name in wrong} <= BELOW_BY_NEED


def test_every_module_has_a_layer() -> None:
    assert {room(path) for path in modules()} == set(ROOMS)


def test_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "peft", "mlflow", "pandas", "sklearn", "matplotlib"}
    light = {
        "cli",
        "overrides",
        "config",
        "settings",
        "framing",
        "models",
        "methods",
        "data",
        "hub",
        "hardware",
        "errors",
    }
    for path in modules():
        if room(path) in light:
            top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
            names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
            assert not names & heavy, path

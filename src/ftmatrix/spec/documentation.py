"""What the settings' own docstrings say of them, for `--help`."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from ftmatrix.roles import plain
from ftmatrix.spec.cells import every_schema


@dataclass(frozen=True)
class Documented:
    """A setting by its dotted key, the value that it has if nobody sets it, and its docstring as one line."""

    key: str
    default: str
    text: str


def documented_settings() -> list[Documented]:
    """Every setting that some cell has, in the order of their declarations: those of the cell itself first."""
    found: dict[str, Documented] = {}
    for prefix, schema in every_schema():
        for setting in _settings_of(schema, prefix):
            found.setdefault(setting.key, setting)
    return list(found.values())


def _settings_of(schema: Any, prefix: str) -> Iterator[Documented]:
    texts = docstrings_of(schema)
    for entry in dataclasses.fields(schema):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            continue  # a part with settings of its own
        text = texts.get(entry.name, "").replace("None:", "null:")  # as it is typed
        if isinstance(entry.type, type) and issubclass(entry.type, Enum):
            text = f"{text} ({', '.join(str(member.value) for member in entry.type)})"
        make = entry.default_factory
        default = entry.default if make is dataclasses.MISSING else make()
        yield Documented(f"{prefix}{entry.name}", _shown(default), text)


def docstrings_of(schema: Any) -> dict[str, str]:
    """The docstring under each field of a dataclass, or of one that it inherits from, each as one line."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if not is_dataclass(kind) or not isinstance(kind, type):
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        except OSError:  # installed without its source
            continue
        assert isinstance(definition, ast.ClassDef)
        for statement, after in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[statement.target.id] = " ".join(text.split())
    return found


def _shown(default: Any) -> str:
    """A default as it would be typed; nothing where there is none."""
    match plain(default):
        case None:
            return "null"
        case bool(value):
            return str(value).lower()
        case value if value == MISSING:
            return ""
        case str(value):
            return repr(value) if any(letter.isspace() for letter in value) else value
        case float(value):
            return f"{value:g}"
        case value:
            return str(value)

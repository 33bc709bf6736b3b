"""What a setting is for, declared where it stands: whether it decides a cell's result, how it is run, or a command.

Identity, records and comparisons read the roles, so that no list has to be kept beside the settings.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any


class Role(Enum):
    """What a setting is for."""

    RESULT = "result"
    """Decides what a cell comes to, or what is measured of it: part of the cell's identity."""
    RESOLVED = "resolved"
    """Decides by what it comes to, such as a model's revision or a data set's content: that is part of the identity."""
    EXECUTION = "execution"
    """Says where and how a cell is run."""
    COMMAND = "command"
    """Says what one command does."""


@dataclass(frozen=True)
class Declared:
    """What is declared of a setting."""

    role: Role
    recorded: bool
    """Whether runs record it."""
    compared: bool
    """Whether runs that differ in it are other cells to a comparison."""
    added: bool
    """Whether it came after runs had been recorded: at its default it is left out of the identity, as it was then."""


KEY = "ftmatrix"
"""Of a field's metadata."""


def result(default: Any = dataclasses.MISSING, *, compared: bool = True, added: bool = False, **more: Any) -> Any:
    """A setting that decides a cell's result. `more` goes to `dataclasses.field`."""
    return _declared(Declared(Role.RESULT, recorded=True, compared=compared, added=added), default, more)


def resolved(default: Any = dataclasses.MISSING, *, recorded: bool = True, compared: bool = True) -> Any:
    """A setting that decides a cell's result by what it comes to."""
    return _declared(Declared(Role.RESOLVED, recorded, compared and recorded, added=False), default, {})


def execution(default: Any = dataclasses.MISSING, *, recorded: bool = False) -> Any:
    """A setting of where and how a cell is run."""
    return _declared(Declared(Role.EXECUTION, recorded, compared=False, added=False), default, {})


def command(default: Any = dataclasses.MISSING) -> Any:
    """A setting of one command."""
    return _declared(Declared(Role.COMMAND, recorded=False, compared=False, added=False), default, {})


def _declared(declared: Declared, default: Any, more: dict[str, Any]) -> Any:
    return dataclasses.field(default=default, metadata={KEY: declared}, **more)


def declared_in(schema: Any) -> dict[str, Declared]:
    """What is declared of each setting of a dataclass or of its instance, those of its parts left out.

    Raises:
        TypeError: a setting has no role.
    """
    found = {}
    for entry in fields(schema):
        if KEY in entry.metadata:
            found[entry.name] = entry.metadata[KEY]
        elif not (isinstance(entry.type, type) and is_dataclass(entry.type)):
            raise TypeError(f"{schema}.{entry.name} has no role: declare it by one of ftmatrix.roles")
    return found


def parts_of(schema: Any) -> Iterator[tuple[str, type]]:
    """The settings of a dataclass that have settings of their own, with their types."""
    return ((entry.name, entry.type) for entry in fields(schema) if KEY not in entry.metadata)  # type: ignore[misc]


def identity_of(part: Any) -> dict[str, Any]:
    """The settings of a part that belong to a cell's identity by their value, as plain values."""
    defaults = {entry.name: entry.default for entry in fields(part)}
    return {
        name: plain(getattr(part, name))
        for name, declared in declared_in(part).items()
        if declared.role is Role.RESULT and not (declared.added and getattr(part, name) == defaults[name])
    }


def plain(value: Any) -> Any:
    """A dataclass of settings as dicts, lists and scalars, enums by their value."""
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, inner in value.items():
        items |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return items


def varying(groups: Iterable[Iterable[Mapping[str, Any]]]) -> set[str]:
    """The keys in which members of some group differ, among those that have them."""
    found: set[str] = set()
    for members in groups:
        values: dict[str, set[str]] = {}
        for settings in members:
            for key, value in settings.items():
                values.setdefault(key, set()).add(str(value))
        found |= {key for key, seen in values.items() if len(seen) > 1}
    return found

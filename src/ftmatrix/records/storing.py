"""Records as strict JSON, and back."""

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1
"""Of what `to_json` writes. Raised when an older program couldn't read it; 0 are records from before there was one."""
VERSION_KEY = "schema_version"
NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}
"""How JSON, which has no such numbers, gets them: as texts. Null is what isn't known."""

Record = TypeVar("Record")


def to_json(record: object) -> str:
    """A record as JSON, with its schema's version."""
    content = {VERSION_KEY: SCHEMA_VERSION, **as_plain(record)}
    return json.dumps(content, indent=1, allow_nan=False)


def from_json(kind: type[Record], text: str) -> Record:
    """The record that `to_json` wrote.

    Raises:
        ValueError: the text holds no such record, or one that a newer program wrote.
    """
    return record_of(kind, json.loads(text))


def record_of(kind: type[Record], content: Any) -> Record:
    """The record of a plain value, as `as_plain` gives it.

    Raises:
        ValueError: it is no such record, or a newer program wrote it.
    """
    version = content.get(VERSION_KEY, 0) if isinstance(content, dict) else 0
    if not isinstance(version, int):
        raise ValueError(f"{VERSION_KEY} is {version!r}, and no number")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"a newer ftmatrix wrote this {kind.__name__} (schema {version}; this one reads up to {SCHEMA_VERSION}); "
            "update ftmatrix"
        )
    record: Record = _reader(kind).validate_python(content)  # type: ignore[arg-type]
    return record


def as_plain(value: Any) -> Any:
    """Records as dicts, with lists and scalars in them; a number that isn't finite as its name."""
    if dataclasses.is_dataclass(value):
        return {entry.name: as_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    return NOT_FINITE.get(value, "NaN") if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _reader(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)

"""Records as strict JSON, and back."""

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1
"""Of what `to_json` writes. Raised when an older program couldn't read it; 0 are records from before there was one."""
VERSION_KEY = "schema_version"

Record = TypeVar("Record")


def to_json(record: object) -> str:
    """A record as JSON with its schema's version. A number that isn't finite is null, because JSON has none."""
    content = {VERSION_KEY: SCHEMA_VERSION, **as_plain(record)}
    return json.dumps(content, indent=1, allow_nan=False)


def from_json(kind: type[Record], text: str) -> Record:
    """The record that `to_json` wrote.

    Raises:
        ValueError: the text holds no such record, or one that a newer program wrote.
    """
    return record_of(kind, json.loads(text))


def record_of(kind: type[Record], content: Any) -> Record:
    """The record of a plain value, as `as_plain` gives it. Where a number has to be, null is NaN.

    Raises:
        ValueError: it is no such record, or a newer program wrote it.
    """
    if isinstance(content, dict) and (version := content.get(VERSION_KEY, 0)) > SCHEMA_VERSION:
        raise ValueError(
            f"a newer ftmatrix wrote this {kind.__name__} (schema {version}; this one reads up to {SCHEMA_VERSION}); "
            "update ftmatrix"
        )
    record: Record = _reader(kind).validate_python(_with_nan(kind, content))  # type: ignore[arg-type]
    return record


def as_plain(value: Any) -> Any:
    """Records as dicts, with lists and scalars in them; a number that isn't finite as None."""
    if dataclasses.is_dataclass(value):
        return {entry.name: as_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(kind: Any, content: Any) -> Any:
    """The content with NaN in the place of null where the kind has a number."""
    origin, inner = get_origin(kind), get_args(kind)
    match content:
        case None:
            return math.nan if kind is float else None
        case dict() if dataclasses.is_dataclass(kind):
            kinds = _kinds_of(cast(type, kind))
            return {name: _with_nan(kinds[name], value) for name, value in content.items() if name in kinds}
        case dict() if origin is dict:
            return {name: _with_nan(inner[1], value) for name, value in content.items()}
        case list() if origin in (tuple, list):
            places = inner[:1] * len(content) if origin is list or inner[-1] is ... else inner
            return [_with_nan(one, value) for one, value in zip(places, content, strict=True)]
        case _ if origin in (Union, UnionType):
            (first, *_) = (one for one in inner if one is not type(None))
            return _with_nan(first, content)
    return content


@cache
def _kinds_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _reader(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)

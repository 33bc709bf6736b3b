"""Records as JSON, and back."""

import dataclasses
import json
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter


Record = TypeVar("Record")


def to_json(record: object) -> str:
    """A record as JSON. Non-finite numbers are written as NaN and Infinity, by name."""
    return json.dumps(dataclasses.asdict(record), indent=1)  # type: ignore[call-overload]


def from_json(kind: type[Record], text: str) -> Record:
    """The record that `to_json` wrote.

    Raises:
        pydantic.ValidationError: the text holds no such record.
    """
    record: Record = _reader(kind).validate_python(json.loads(text))  # type: ignore[arg-type]
    return record


@cache
def _reader(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)

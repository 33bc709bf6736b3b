"""Settings given from Python, as the words that the command line takes."""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from ftmatrix.errors import ConfigError

SIMPLE = re.compile(r"[A-Za-z0-9_./:@-]+")
"""Texts that Hydra's grammar takes as one word; some of them as a number."""


def words_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """KEY=VALUE of each setting. A dict holds settings of its own, a list several values, a tuple one that is a list.

    >>> list(words_of({"method": ["full", "lora"], "lr": 1e-4, "training": {"epochs": 2}}))
    ['method=full,lora', 'lr=0.0001', 'training.epochs=2']

    Raises:
        ConfigError: a value is of a kind that no setting has, or a list of values is empty.
    """
    for name, value in settings.items():
        key = f"{prefix}{name}"
        several = _several(value)
        if isinstance(value, Mapping):
            yield from words_of(value, f"{key}.")
        elif several is None:
            yield f"{key}={_word(key, value)}"
        elif several:
            yield f"{key}={','.join(_word(key, one) for one in several)}"
        else:
            raise ConfigError(f"{key}=[]: name at least one value")


def _several(value: Any) -> list[Any] | None:
    """The values of a list, a range or an array; None for a single value."""
    if isinstance(value, list | range):
        return list(value)
    listed = value.tolist() if hasattr(value, "tolist") else None  # an array's, as Python's own numbers
    return listed if isinstance(listed, list) else None


def _word(key: str, value: Any) -> str:
    match value.tolist() if hasattr(value, "tolist") else value:  # a number of numpy's
        case None:
            return "null"
        case bool(truth):
            return str(truth).lower()
        case int(number) | float(number):
            return repr(number)
        case Enum():
            return _word(key, value.value)
        case Path():
            return _word(key, str(value))
        case str(text):
            return text if _is_plain(text) else "'" + _escaped(text) + "'"
        case tuple(items):
            return f"[{','.join(_word(key, one) for one in items)}]"
    raise ConfigError(f"{key}={value!r}: a {type(value).__name__} is no setting; give text, a number, a list of them")


@cache
def _is_plain(text: str) -> bool:
    """Whether Hydra reads a text as it stands: 1e3, true and null would be something else to it."""
    return bool(SIMPLE.fullmatch(text)) and _parser().parse_override(f"key={text}").value() == text


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _escaped(text: str) -> str:
    """A text as it stands between single quotes, where backslashes before a quote, or at the end, count half."""
    return re.sub(r"(\\*)'", r"\1\1\'", re.sub(r"(\\+)\Z", r"\1\1", text))

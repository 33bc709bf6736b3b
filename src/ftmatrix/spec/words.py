"""Settings given from Python, as the words that the command line takes."""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from ftmatrix.errors import ConfigError

SIMPLE = re.compile(r"[A-Za-z0-9_./:@-]+")
"""Texts that Hydra's grammar reads as they stand."""


def words_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """KEY=VALUE of each setting. A dict holds settings of its own, a list several values, a tuple one that is a list.
    A list of dicts is one value: the grids whose union is run.

    >>> list(words_of({"method": ["full", "lora"], "lr": 1e-4, "training": {"epochs": 2}}))
    ['method=full,lora', 'lr=0.0001', 'training.epochs=2']

    Raises:
        ConfigError: a value is of a kind that no setting has, or a list of values is empty.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from words_of(value, f"{prefix}{key}.")
        elif isinstance(value, list) and not all(isinstance(one, Mapping) for one in value):
            yield f"{prefix}{key}={','.join(_word(f'{prefix}{key}', one) for one in value)}"
        elif isinstance(value, list):
            if not value:
                raise ConfigError(f"{prefix}{key}=[]: name at least one value")
            yield f"{prefix}{key}={_word(f'{prefix}{key}', tuple(value))}"
        else:
            yield f"{prefix}{key}={_word(f'{prefix}{key}', value)}"


def _word(key: str, value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Enum():
            return _word(key, value.value)
        case Path():
            return _word(key, str(value))
        case str():
            return value if SIMPLE.fullmatch(value) else "'" + _escaped(value) + "'"
        case Mapping():
            return f"{{{','.join(f'{name}:{_word(key, one)}' for name, one in value.items())}}}"
        case tuple() | list():
            return f"[{','.join(_word(key, one) for one in value)}]"
    raise ConfigError(f"{key}={value!r}: a {type(value).__name__} is no setting; give text, a number, a list of them")


def _escaped(text: str) -> str:
    """A text as it stands between single quotes, where backslashes before a quote, or at the end, count half."""
    return re.sub(r"(\\*)'", r"\1\1\'", re.sub(r"(\\+)$", r"\1\1", text))

"""Figures of a split that need its predictions alone. Every file beside this one is such a figure, under its own name.

It has one function, `score(predictions)`, whose value stands in MLflow as `NAME` for the test messages and `val_NAME`
for the validation messages. What is undefined is NaN, and left out there.
"""

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from ftmatrix.cell.metrics import is_taken
from ftmatrix.errors import ConfigError
from ftmatrix.records import Prediction


def score_names() -> list[str]:
    """The figures that there are.

    Raises:
        ConfigError: one has the name of a metric that every run has.
    """
    names = sorted(module.name for module in iter_modules(__path__))
    if taken := [name for name in names if is_taken(name)]:
        raise ConfigError(f"cell/scores/{taken[0]}.py: every run has a metric {taken[0]!r}; give the file another name")
    return names


def score_of(name: str, predictions: Sequence[Prediction]) -> float:
    """A figure of these predictions."""
    return float(import_module(f"{__name__}.{name}").score(predictions))

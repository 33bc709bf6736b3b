"""Figures of a split that need its predictions alone. Every file beside this one is such a figure, under its own name.

It has one function, `score(predictions)`, whose value stands in MLflow as `NAME` for the test messages and `val_NAME`
for the validation messages. What is undefined is NaN, and left out there.
"""

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from ftmatrix.records import Prediction


def all_scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Every figure of these predictions, by name."""
    names = sorted(module.name for module in iter_modules(__path__))
    return {name: float(import_module(f"{__name__}.{name}").score(predictions)) for name in names}

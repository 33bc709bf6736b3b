"""The kinds of method there are: one in each module beside this one, known by the module's name."""

from importlib import import_module
from pkgutil import iter_modules

from omegaconf import MISSING

import ftmatrix.arms
from ftmatrix.arms.base import Method


def _kind_in(module: str) -> type[Method] | None:
    """The method that a module of this room defines."""
    name = f"ftmatrix.arms.{module}"
    inside = vars(import_module(name)).values()
    kinds = (kind for kind in inside if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method)
    return next((kind for kind in kinds if kind.__module__ == name), None)


_MODULES = sorted(module.name for module in iter_modules(ftmatrix.arms.__path__) if module.name != "schemas")

METHOD_SCHEMAS = {module: kind for module in _MODULES if (kind := _kind_in(module)) is not None}
"""What `defaults: - /schema/method@_here_: NAME` of a method's YAML may name."""

NAMED_METHODS = {module: kind for module, kind in METHOD_SCHEMAS.items() if kind.name != MISSING}
"""Kinds that say their own name: `method=MODULE` takes them without a YAML."""

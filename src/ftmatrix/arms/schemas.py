"""The kinds of method there are: one in each module beside this one, known by the module's name."""

from importlib import import_module
from pkgutil import iter_modules

from omegaconf import MISSING

import ftmatrix.arms
from ftmatrix.arms.base import Method
from ftmatrix.errors import ConfigError, first_line


def _kind_in(module: str) -> type[Method] | None:
    """The method that a module of this room defines.

    Raises:
        ConfigError: the module can't be imported.
    """
    name = f"ftmatrix.arms.{module}"
    try:
        inside = vars(import_module(name)).values()
    except Exception as error:
        raise ConfigError(
            f"arms/{module}.py can't be imported ({type(error).__name__}: {first_line(error)})"
        ) from error
    kinds = (kind for kind in inside if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method)
    return next((kind for kind in kinds if kind.__module__ == name), None)


_MODULES = sorted(module.name for module in iter_modules(ftmatrix.arms.__path__) if module.name != "schemas")

METHOD_SCHEMAS = {module: kind for module in _MODULES if (kind := _kind_in(module)) is not None}
"""What `defaults: - /schema/method@_here_: NAME` of a method's YAML may name."""

NAMED_METHODS = {module: kind for module, kind in METHOD_SCHEMAS.items() if kind.name != MISSING}
"""Kinds that say their own name: `method=MODULE` takes them without a YAML."""

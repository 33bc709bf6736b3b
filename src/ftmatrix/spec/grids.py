"""The jobs of a sweep: one grid, or the union of several that share some keys."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from ftmatrix.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

Job = tuple[str, ...]
"""The overrides of one job, KEY=VALUE each."""
Axes = dict[str, list[str]]
"""The values of each key."""


def jobs_of(
    params: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any] | Sequence[str]],
    given: Sequence[str],
    loader: "ConfigLoader | None" = None,
) -> list[Job]:
    """The union of all grids, in order, each job once. A grid is keys with values, or words that say the same.

    `params` holds for every grid, and a grid's own keys go before it. A key that is `given` on the command line goes
    before both: its values pick the grids that state them, and a value that no grid states goes into all. Where that
    picks nothing, the given values replace the stated ones.

    Raises:
        HydraException: an override can't be read.
        ConfigError: a grid isn't keys with values.
    """
    shared = _axes([f"{key}={_written(key, value)}" for key, value in params.items()], loader)
    asked = _axes(given, loader)
    stated = [_axes(_words(grid), loader) for grid in grids] or [{}]
    picked = [axes for grid in stated if (axes := _pick(asked, grid, stated)) is not None]
    chosen = picked or [grid | asked for grid in stated]
    found: dict[frozenset[tuple[str, str | float]], Job] = {}
    for axes in (shared | own for own in chosen):
        for values in product(*axes.values()):
            job = dict(zip(axes, values, strict=True))
            same = frozenset((key, _same(value)) for key, value in job.items())
            found.setdefault(same, tuple(f"{key}={value}" for key, value in job.items()))
    return list(found.values())


def _pick(asked: Axes, grid: Axes, stated: Sequence[Axes]) -> Axes | None:
    """A grid with the asked values that are its own, or nobody's; None where one of its keys has none of them."""
    axes = grid | asked
    for key in asked.keys() & grid.keys():
        known = {_same(value) for other in stated for value in other.get(key, ())}
        own = {_same(value) for value in grid[key]}
        axes[key] = [value for value in asked[key] if _same(value) in own or _same(value) not in known]
        if not axes[key]:
            return None
    return axes


def _words(grid: Mapping[str, Any] | Sequence[str]) -> Sequence[str]:
    return [f"{key}={_written(key, value)}" for key, value in grid.items()] if isinstance(grid, Mapping) else grid


def _axes(overrides: Sequence[str], loader: "ConfigLoader | None") -> Axes:
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return {override.get_key_element(): _values(override) for override in parsed}


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: a grid needs values, not an interval; name a searching sweeper for it"
        )
    return list(override.sweep_string_iterator())


def _written(key: str, value: Any) -> str:
    """A value of YAML as it would be typed: a list is a choice."""
    if isinstance(value, Mapping):
        raise ConfigError(f"grids: {key} has keys of its own; write {key}.{next(iter(value), 'KEY')}: VALUES")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(_written(key, one) for one in value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _same(value: str) -> str | float:
    """By what two spellings of a value are the same: 5e-5 and 0.00005."""
    try:
        return float(value)
    except ValueError:
        return value

"""Composes the cells of a grid: Hydra's composition once for each choice of groups, the plain values after it."""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftmatrix.spec.cells import Cell
from ftmatrix.spec.schemas import cell_from, without_hydra

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


class Composer:
    """Makes cells of a sweep's overrides. `master` is the sweep's own config.

    A composition takes Hydra some 60 ms, and a grid's cells differ in few groups and many rates and seeds. Values are
    set last in a composition too, so setting them afterwards gives the same config.
    """

    def __init__(self, loader: "ConfigLoader", master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self._options = cache(loader.get_group_options)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._parser = OverridesParser.create()

    def fitting(self, jobs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        """The overrides of each job, less those that set what its own method or data set lacks and another job's has.

        Raises:
            HydraException: a job's groups can't be composed.
        """
        sets = [{override: self._has(job, override) for override in job} for job in jobs]
        somewhere = {override for job in sets for override, has in job.items() if has}
        return [tuple(override for override, has in job.items() if has or override not in somewhere) for job in sets]

    def _has(self, job: Sequence[str], override: str) -> bool:
        """Whether what a job has chosen has the key of an override."""
        key = override.partition("=")[0]
        if "." not in key or not self._sets_a_value(override):
            return True
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(self._choose([one for one in job if not self._sets_a_value(one)]), parent)
        return isinstance(node, DictConfig) and name in node

    def cell(self, overrides: Sequence[str]) -> Cell:
        """The typed, checked cell of one job's overrides.

        Raises:
            HydraException: they can't be composed.
            ConfigError: a value is missing, of the wrong type or out of range.
        """
        values = [override for override in overrides if self._sets_a_value(override)]
        try:
            config = self._choose([override for override in overrides if override not in values]).copy()
            for override in self._parser.parse_overrides(values):
                OmegaConf.update(config, override.key_or_group, override.value())
        except OmegaConfBaseException:  # Hydra's own words for it
            config = self.loader.load_sweep_config(self.master, list(overrides))
        return cell_from(config)

    def _choose(self, groups: list[str]) -> DictConfig:
        if (key := tuple(groups)) not in self._composed:
            self._composed[key] = without_hydra(self.loader.load_sweep_config(self.master, groups))
        return self._composed[key]

    def _sets_a_value(self, override: str) -> bool:
        """Whether it is KEY=VALUE, where no group has that name."""
        key, _, _ = override.partition("=")
        return re.fullmatch(r"[a-z_.]+", key) is not None and not self._options(key)

"""A command's words as cells, without running them: what the launcher does on the command line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ftmatrix.errors import ConfigError
from ftmatrix.spec.cells import Cell
from ftmatrix.spec.composition import Composer
from ftmatrix.spec.grids import jobs_of
from ftmatrix.spec.overrides import expand, explain
from ftmatrix.spec.places import config_folder
from ftmatrix.spec.schemas import register_schemas

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

ALONE = RLock()
"""Hydra keeps its state for the whole process: threads compose one after the other."""


@dataclass(frozen=True)
class Asked:
    """The cells of a command, each once, and the launcher that would run them."""

    cells: list[Cell]
    launcher: DictConfig


def ask(words: Sequence[str], grids: Sequence[Sequence[str]] = ()) -> Asked:
    """The cells of a grid, a study (`experiment=NAME`) or a single setting; or of the union of several grids.

    Raises:
        ConfigError: a setting, a value or a study is unknown, or a value out of range.
    """
    try:
        with _hydra() as loader:
            config = loader.load_configuration("config", expand(words), RunMode.MULTIRUN)
            sweeper = config.hydra.sweeper
            params = OmegaConf.to_container(sweeper.params) if sweeper.params else {}
            stated = grids or (OmegaConf.to_container(sweeper.grids) if sweeper.grids else [])
            jobs = jobs_of(params, stated, list(config.hydra.overrides.task), loader)  # type: ignore[arg-type]
            composer = Composer(loader, config)
            cells = {job: composer.cell(job) for job in composer.fitting(jobs)}
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(explain(error)) from error
    return Asked(list(cells.values()), config.hydra.launcher)


@contextmanager
def _hydra() -> Iterator["ConfigLoader"]:
    """Hydra's loader of our configuration. What another program has set up of Hydra is there again afterwards."""
    with ALONE:
        before = Singleton.get_state()
        try:
            register_schemas()
            GlobalHydra.instance().clear()
            path = create_config_search_path(str(config_folder()))
            yield Hydra.create_main_hydra2(task_name="ftmatrix", config_search_path=path).config_loader
        finally:
            Singleton.set_state(before)

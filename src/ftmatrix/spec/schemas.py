"""Where Hydra ends: a composed config becomes a `Cell`."""

import dataclasses

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ftmatrix.arms import METHOD_SCHEMAS, NAMED_METHODS
from ftmatrix.data import DATA_SCHEMAS
from ftmatrix.errors import ConfigError
from ftmatrix.models import Model
from ftmatrix.spec.cells import Cell


def register_schemas() -> None:
    """Tell Hydra the types of the config: the YAML files name them in their defaults."""
    store = ConfigStore.instance()
    store.store(name="cell", node=Cell)
    for name, method in METHOD_SCHEMAS.items():
        store.store(group="schema/method", name=name, node=method)
    for name, method in NAMED_METHODS.items():
        store.store(group="method", name=name, node=method)
    for name, source in DATA_SCHEMAS.items():
        store.store(group="schema/data", name=name, node=source)
    store.store(group="schema/model", name="model", node=Model)


def cell_from(config: DictConfig) -> Cell:
    """The typed, checked cell of a composed config.

    Raises:
        ConfigError: a value is missing, of the wrong type or out of range.
    """
    config = without_hydra(config)
    try:
        cell = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    if not isinstance(cell, Cell):
        raise ConfigError("config.yaml must begin its defaults with `- cell`, the schema of an experiment")
    unknown = sorted(set(map(str, config)) - {entry.name for entry in dataclasses.fields(Cell)})
    if unknown:
        raise ConfigError(f"+{unknown[0]}: nothing reads such a setting; remove it")
    cell.check()
    return cell


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of a composed config that leaves out Hydra's own part."""
    config = config.copy()
    with open_dict(config):
        config.pop("hydra", None)
    return config

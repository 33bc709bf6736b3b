"""Command-line overrides: studies by name, and Hydra's errors as one line with the nearest valid name."""

import re
from collections.abc import Sequence

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ftmatrix.arms import NAMED_METHODS
from ftmatrix.errors import ConfigError, first_line, nearest
from ftmatrix.roles import parts_of
from ftmatrix.spec.cells import Cell, every_setting
from ftmatrix.spec.places import config_folder
from ftmatrix.spec.studies import known_studies

GROUPS = ("method", "model", "data")


def expand(arguments: Sequence[str]) -> list[str]:
    """Our own short forms as Hydra knows them: `experiment=STUDY`, `experiment=STUDY/GRID`, `n_jobs=N`, `grids=[...]`.

    Raises:
        ConfigError: there is no such study.
    """
    expanded = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "experiment":
            value = value.strip("'")
            if value not in (known := grids()):
                raise ConfigError(f"experiment={value}: no such study; {nearest(value, known)}")
            argument = f"+experiments={known[value]}"
        elif key == "n_jobs":
            argument = f"hydra.launcher.{argument}"
        elif key == "grids":
            argument = f"hydra.sweeper.{argument}"
        expanded.append(argument)
    return expanded


def grids() -> dict[str, str]:
    """What `experiment=` may name, and the config behind it: a study's own grid, or another one beside it."""
    found = {}
    for name, folder in known_studies().items():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem == "grid":
                found[name] = f"{name}/grid"
            elif path.stem != "claims":
                found[f"{name}/{path.stem}"] = f"{name}/{path.stem}"
    return found


def options(group: str) -> list[str]:
    """The names that a config group offers: its YAML files, and methods that need none."""
    named = {path.stem for path in (config_folder() / group).glob("*.yaml")}
    if group == "method":
        named |= set(NAMED_METHODS)
    return sorted(named)


def keys() -> set[str]:
    """Every key that some override may set, dotted."""
    parts = {name for name, _ in parts_of(Cell)}
    return {*every_setting(), *parts, "experiment", "n_jobs", "grids"}


def explain(error: HydraException | OmegaConfBaseException | YAMLError) -> str:
    """Hydra's refusal of a command, in one line: the value, the rule, the way out."""
    if isinstance(error, YAMLError):
        return f"a YAML file can't be read: {' '.join(str(error).split())}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: Hydra can't read this ({first_line(error)}); quote it: KEY='\"VALUE\"'"
    said = " ".join(str(link) for link in _causes(error))
    if found := re.search(r"Could not (?:override|append to config|delete from config)\.? '([^']+)'", said):
        return _unknown(found[1])
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^']+)'", said):
        listed = re.search(r"Available options in '[^']+':((?:\s+[\w.-]+)*?)(?=\s*Config search path|\s*$)", said)
        known = listed[1].split() if listed else options(found[1])
        return f"{found[1]}={found[2]}: no such {found[1].rpartition('/')[2]}; {nearest(found[2], known)}"
    if found := re.search(r"Key '([^']+)' (?:is not in struct|not in '[^']+').*?full_key: (\S+)", said, re.DOTALL):
        return _unknown(found[2])
    if found := re.search(r"full_key: (\S+)", said):
        refusals = [link for link in _causes(error) if isinstance(link, OmegaConfBaseException)]
        return f"{found[1]}: {str(refusals[0]).splitlines()[0]}"
    return " ".join(str(error).split())


def _unknown(key: str) -> str:
    if key.startswith("experiments"):
        return "experiments: a study's grid.yaml must begin with the line `# @package _global_`"
    known = keys()
    if key in known:
        return f"{key}: not a setting of this {key.partition('.')[0]}; `ftmatrix --cfg job …` shows which it has"
    inner = {name for name in known if "." in key and name.startswith(key.partition(".")[0] + ".")}
    top = {name.partition(".")[0] for name in known}
    return f"{key}: no such setting; {nearest(key, inner or (known if '.' in key else top))}"


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain

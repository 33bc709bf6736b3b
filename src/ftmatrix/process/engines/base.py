"""Where cells may run beside this machine's own processes: engines that start a job somewhere and tell of its end."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Protocol

from ftmatrix.errors import ConfigError
from ftmatrix.spec import Cell

RunCell = Callable[[Cell], str]
"""Runs a cell where it is called, and returns the id of its run in MLflow."""


class Job(Protocol):
    """A cell on its way, as `concurrent.futures` has it."""

    def done(self) -> bool:
        """Whether it is over, one way or another."""

    def result(self) -> str:
        """The id of the cell's run; raises where the job came to none."""

    def cancel(self) -> object:
        """Don't begin it, or end it."""


class Engine(Protocol):
    """Starts cells as jobs."""

    @property
    def n_jobs(self) -> int | None:
        """How many jobs may be under way at once; None leaves it to the engine."""

    @property
    def name(self) -> str:
        """As `hydra/launcher` has it."""

    def open(self) -> None:
        """Reach what runs the jobs.

        Raises:
            ConfigError: a package is missing, or nothing answers.
        """

    def submit(self, run: RunCell, cells: Sequence[Cell]) -> Sequence[Job]:
        """Have each cell run by `run`, in a process of this engine."""

    def close(self) -> None:
        """Let go of it."""


def need(package: str, engine: str, extra: str) -> None:
    """Refuse an engine whose package isn't installed.

    Raises:
        ConfigError: says what to install.
    """
    if find_spec(package) is None:
        raise ConfigError(f"hydra/launcher={engine}: needs the package {package}; pip install 'ftmatrix[{extra}]'")

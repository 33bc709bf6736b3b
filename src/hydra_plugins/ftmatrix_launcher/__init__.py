"""What Hydra discovers: the sweeper and the launcher of cells, and the search path of experiments."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin

from ftmatrix.errors import CellFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from ftmatrix.process import Engine


class ExperimentsSearchPath(SearchPathPlugin):
    """Finds experiments/NAME/grid.yaml in the working directory first, then among those of ftmatrix itself.

    Launchers that Hydra's own plugins name as ours are named make room for ours, where such plugins are installed.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if "cell.yaml" not in ConfigStore.instance().repo:
            return  # another Hydra application in the same environment

        from ftmatrix.spec import config_folder, experiments_root

        others = ConfigStore.instance().repo["hydra"]["launcher"]
        for path in (config_folder() / "hydra" / "launcher").glob("*.yaml"):
            others.pop(path.name, None)
        for folder in (Path.cwd(), experiments_root()):
            if (folder / "experiments").is_dir():
                search_path.append("ftmatrix-experiments", f"file://{folder}")


class GridSweeper(BasicSweeper):
    """Hydra's own grid, or the union of several. It doesn't compose every job in advance where the launcher does so."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None, grids: "list[dict[str, Any]] | None"
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids = grids or []

    def sweep(self, arguments: list[str]) -> Any:
        self.given = arguments
        return super().sweep(arguments)

    def split_arguments(self, overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """The jobs, in batches. `overrides` are params and the command's words, parsed as if they were one grid."""
        from ftmatrix.spec import jobs_of

        assert self.hydra_context is not None
        jobs = jobs_of(self.params, self.grids, self.given, self.hydra_context.config_loader)
        return list(self.split_overrides_to_chunks([list(job) for job in jobs], max_batch_size))

    def validate_batch_is_legal(self, batch: "Sequence[Sequence[str]]") -> None:
        if not isinstance(self.launcher, CellLauncher):
            super().validate_batch_is_legal(batch)


class CellLauncher(Launcher):
    """Composes every cell of the grid first, then hands them all to `ftmatrix.sweep.campaign`."""

    def __init__(self, n_jobs: int | str | None) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig") -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: "Sequence[Sequence[str]]", initial_job_idx: int) -> "Sequence[JobReturn]":
        from ftmatrix.records import Outcome
        from ftmatrix.spec import Composer

        # every run keeps its own configuration; Hydra's copy of the command may hold the tracking URI's password
        (Path(self.config.hydra.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
        composer = Composer(self.hydra_context.config_loader, self.config)
        jobs = composer.fitting(job_overrides)
        cells = {job: composer.cell(job) for job in jobs}  # what is left out may leave two jobs the same
        from ftmatrix.sweep import sweep  # imports torch: a wrong setting is told before that

        rows = dict(zip(cells, sweep(list(cells.values()), n_jobs=self.n_jobs, engine=self.engine()), strict=True))
        returns = []
        for row in map(rows.__getitem__, jobs):
            if row is None or row.outcome is Outcome.COMPLETED:
                figure = None if row is None else row.metric("val_accuracy")  # what a searching sweeper maximises
                returns.append(JobReturn(status=JobStatus.COMPLETED, _return_value=figure))
            else:
                returns.append(_Failed(row.reason))
        return returns

    @property
    def most(self) -> int | None:
        """Cells that an engine may run at once; None: as many as it takes."""
        return self.n_jobs if isinstance(self.n_jobs, int) else None

    @property
    def most_here(self) -> int:
        """The same of an engine on this machine: as many as it has cores."""
        from ftmatrix.machine import usable_cores

        return self.most or usable_cores()

    def engine(self) -> "Engine | None":
        """What runs the cells; None: this command, each in a process of its own."""
        return None


class RayLauncher(CellLauncher):
    """Cells as tasks of a Ray cluster."""

    def __init__(
        self, address: str | None, cpus: float, gpus: float, memory: str | None, n_jobs: int | str | None
    ) -> None:
        super().__init__(n_jobs)
        self.share = (address, cpus, gpus, memory)

    def engine(self) -> "Engine":
        from ftmatrix.process import RayEngine

        return RayEngine(*self.share, self.most)


class SubmititLauncher(CellLauncher):
    """Cells as jobs of Slurm, or as processes handled like them."""

    def __init__(self, cluster: str, folder: str, n_jobs: int | str | None, settings: "DictConfig") -> None:
        super().__init__(n_jobs)
        self.cluster, self.folder, self.settings = cluster, folder, settings

    def engine(self) -> "Engine":
        from omegaconf import OmegaConf

        from ftmatrix.process import SubmititEngine

        settings: Any = OmegaConf.to_container(self.settings)
        return SubmititEngine(
            self.cluster, self.folder, self.most if self.cluster == "slurm" else self.most_here, settings
        )


class JoblibLauncher(CellLauncher):
    """Cells in joblib's workers."""

    def engine(self) -> "Engine":
        from ftmatrix.process import JoblibEngine

        return JoblibEngine(self.most_here)


class _Failed(JobReturn):
    """A cell without a result. The sweeper learns of it when it reads the value, after all cells have run."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(status=JobStatus.FAILED)
        self.reason = reason

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        raise CellFailedError(self.reason)


@dataclass
class CellLauncherConfig:
    """`hydra/launcher=cells`."""

    _target_: str = f"{__name__}.CellLauncher"
    n_jobs: int | str | None = None
    """Cells side by side; auto: as many as cores and memory allow (None: that on a CPU, one on an accelerator)."""


@dataclass
class GridSweeperConfig:
    """`hydra/sweeper=grid`."""

    _target_: str = f"{__name__}.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    """What every grid has."""
    grids: list[dict[str, Any]] | None = None
    """Several grids, whose union is run: keys with their values, as text or as lists."""


for group, name, node in (("launcher", "cells", CellLauncherConfig), ("sweeper", "grid", GridSweeperConfig)):
    ConfigStore.instance().store(group=f"hydra/{group}", name=name, node=node, provider="ftmatrix")

"""Cells as Slurm jobs, or as processes of this machine that are handled like them, by submitit."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftmatrix.errors import ConfigError, first_line
from ftmatrix.process.engines.base import Job, RunCell, need
from ftmatrix.spec import Cell


@dataclass
class SubmititEngine:
    """`cluster` is slurm, or local. Cells that start together are one array of jobs."""

    cluster: str
    folder: str
    """Where jobs leave what they print, and find what they are to do: on disk that all nodes share."""
    n_jobs: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    """What submitit is told of each job."""

    @property
    def name(self) -> str:
        """As `hydra/launcher` has it."""
        return f"submitit_{self.cluster}"

    def open(self) -> None:
        need("submitit", self.name, "slurm")
        import submitit
        import torch

        asked = {key: value for key, value in self.settings.items() if value is not None}
        try:
            if self.cluster == "local":  # whose jobs see no GPU that they haven't asked for
                asked.setdefault("gpus_per_node", torch.cuda.device_count())
            self._executor = submitit.AutoExecutor(folder=Path(self.folder).absolute() / "%j", cluster=self.cluster)
            self._executor.update_parameters(**asked)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            way_out = "; type it on a node of the cluster, or take submitit_local" if self.cluster == "slurm" else ""
            raise ConfigError(f"hydra/launcher={self.name}: {first_line(error)}{way_out}") from error

    def submit(self, run: RunCell, cells: Sequence[Cell]) -> Sequence[Job]:
        jobs: Sequence[Job] = self._executor.map_array(run, list(cells))
        return jobs

    def close(self) -> None:
        pass

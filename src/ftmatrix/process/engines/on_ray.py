"""Cells as tasks of a Ray cluster."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftmatrix.errors import ConfigError, first_line
from ftmatrix.process.engines.base import Job, RunCell, need
from ftmatrix.spec import Cell, parse_bytes

ANSWER_SECONDS = 10
"""How long a cluster may take to answer."""


@dataclass
class RayEngine:
    """Each cell is a task that asks for its share of a node. Ray itself repeats none: who asked for it does."""

    address: str | None
    """The cluster (`auto`: the one that runs on this machine); None starts one here, for this sweep alone."""
    cpus: float
    gpus: float
    memory: str | None
    """Of the node's memory, such as 8GiB."""
    n_jobs: int | None

    @property
    def name(self) -> str:
        """As `hydra/launcher` has it."""
        return "ray"

    def open(self) -> None:
        need("ray", "ray", "ray")
        import ray

        self._share: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory is not None:
            self._share["memory"] = parse_bytes(self.memory, "hydra.launcher.memory")
        try:
            _check_answers(self.address)
            ray.init(address=self.address or "local", log_to_driver=False, ignore_reinit_error=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"hydra.launcher.address={self.address}: no Ray cluster there ({first_line(error)}); start one with "
                "`ray start --head`, or set it to null for one of this machine's own"
            ) from error

    def submit(self, run: RunCell, cells: Sequence[Cell]) -> Sequence[Job]:
        import ray

        task = ray.remote(max_retries=0, **self._share)(run)
        return [_Task(task.remote(cell)) for cell in cells]

    def close(self) -> None:
        import ray

        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Ask whether something answers at HOST:PORT before Ray does, which would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


@dataclass
class _Task:
    reference: Any

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> str:
        import ray

        return str(ray.get(self.reference))

    def cancel(self) -> object:
        import ray

        return ray.cancel(self.reference)

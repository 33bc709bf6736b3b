"""Cells in joblib's worker processes, which are kept from cell to cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftmatrix.process.engines.base import Job, RunCell
from ftmatrix.spec import Cell


@dataclass
class JoblibEngine:
    """As many workers as `n_jobs`. No cell waits in them: one that dies takes all with it that were submitted."""

    n_jobs: int

    @property
    def name(self) -> str:
        """As `hydra/launcher` has it."""
        return "joblib"

    def open(self) -> None:
        self._executor = self._workers()

    def _workers(self) -> Any:
        from joblib.externals.loky import get_reusable_executor

        return get_reusable_executor(max_workers=self.n_jobs, timeout=300)

    def submit(self, run: RunCell, cells: Sequence[Cell]) -> Sequence[Job]:
        self._executor = self._workers()  # a worker's death leaves the others without an executor
        return [self._executor.submit(run, cell) for cell in cells]

    def close(self) -> None:
        self._executor.shutdown(wait=True, kill_workers=True)

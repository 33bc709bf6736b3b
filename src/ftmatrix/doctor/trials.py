"""Cells that are run to be looked at: by the same processes as a sweep's, without a store."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from ftmatrix.machine import Device, Rank
from ftmatrix.process import CellProcess, Ended, Leases, Stepped, child, warm_up
from ftmatrix.records import CellResult, Step
from ftmatrix.spec import ReadyCell
from ftmatrix.store import Journal, facts_of

Main = Callable[..., None]
"""What a cell's process runs: `child.main`, or what goes before it."""


@dataclass(frozen=True)
class Trial:
    """How a cell ended, its steps, and the wall-clock seconds that it took with its process's start."""

    result: CellResult
    steps: tuple[Step, ...]
    seconds: float

    @property
    def losses(self) -> list[float]:
        """Of each step, in nats per label token."""
        return [step.loss for step in self.steps]


def run_together(cells: Sequence[ReadyCell], folder: Path, main: Main | None = None) -> list[Trial]:
    """Run cells side by side, each with its own record in `folder`. With fewer cards than cells they share them."""
    warm_up(cells)
    leases = Leases(cells, len(cells))
    started = time.monotonic()
    running: dict[Connection, tuple[int, CellProcess]] = {}
    steps: list[list[Step]] = [[] for _ in cells]
    ended: dict[int, Trial] = {}
    try:
        for index, cell in enumerate(cells):
            own = replace(cell, cell=replace(cell.cell, work_dir=str(folder / f"{index}")))
            Journal(own.folder).begin(facts_of(own, goal="doctor", sweep="doctor"))
            process = CellProcess(own, leases.take(own), main)
            running[process.connection] = (index, process)
        while running:
            for connection in cast(list[Connection], wait(list(running))):
                index, process = running[connection]
                match process.receive():
                    case Stepped(done):
                        steps[index] += done
                    case Ended(result):
                        process.close()
                        del running[connection]
                        ended[index] = Trial(result, tuple(steps[index]), time.monotonic() - started)
    finally:
        for _, process in running.values():
            process.kill()
    return [ended[index] for index in range(len(cells))]


def starved(ready: ReadyCell, rank: Rank, *others: Any) -> None:
    """A cell's process that has room for what training holds throughout, and none for what comes and goes."""
    import ftmatrix.process.preload  # noqa: F401  # libraries are none of what the cell may take

    assert ready.forecast is not None
    room = ready.forecast.parts.total_bytes
    if ready.accelerator.device is Device.cpu:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
    else:
        import torch

        share = room / (ready.accelerator.memory_bytes or room)
        getattr(torch, ready.accelerator.kind).set_per_process_memory_fraction(share)
    child.main(ready, rank, *others)


def can_be_starved(device: Device) -> bool:
    """Whether a process's memory can be bounded: on a CPU, that is Linux's affair."""
    return device is not Device.cpu or sys.platform == "linux"

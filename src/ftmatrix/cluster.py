"""Keeps the jobs of an engine going, and starts again what a lost worker took with it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ftmatrix.config import Cell
from ftmatrix.engines import Engine, Job, RunCell
from ftmatrix.errors import first_line

POLL_SECONDS = 0.5
ATTEMPTS = 3
"""How often a cell is started whose job comes to no result: that of a worker that dies, a node that goes away."""


@dataclass(frozen=True)
class Lost:
    """A cell whose jobs all came to nothing; `reason` is what the last one left."""

    reason: str


def run_jobs(
    engine: Engine, run: RunCell, cells: Sequence[Cell], ended: Callable[[Cell, str | Lost], None]
) -> list[str | Lost]:
    """Run every cell as a job; the run of each, in order. `ended` hears of each as it is over.

    Raises:
        KeyboardInterrupt: after the jobs were cancelled; what they saved stays.
    """
    waiting = deque(range(len(cells)))
    attempts = [0] * len(cells)
    going: dict[int, Job] = {}
    found: dict[int, str | Lost] = {}
    try:
        while waiting or going:
            room = len(waiting) if engine.n_jobs is None else engine.n_jobs - len(going)
            starting = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            if starting:
                jobs = engine.submit(run, [cells[index] for index in starting])
                going |= dict(zip(starting, jobs, strict=True))
            for index in [index for index, job in going.items() if job.done()]:
                attempts[index] += 1
                outcome = _outcome(going.pop(index))
                if isinstance(outcome, Lost) and attempts[index] < ATTEMPTS:
                    waiting.append(index)
                    continue
                found[index] = outcome
                ended(cells[index], outcome)
            time.sleep(POLL_SECONDS)
    except BaseException:
        for job in going.values():
            with suppress(Exception):  # it may just be over
                job.cancel()
        raise
    return [found[index] for index in range(len(cells))]


def _outcome(job: Job) -> str | Lost:
    try:
        return job.result()
    except Exception as error:  # the engine's own kinds, and whatever the job raised
        return Lost(f"{type(error).__name__}: {first_line(error)}")

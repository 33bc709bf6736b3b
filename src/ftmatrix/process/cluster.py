"""Keeps the jobs of an engine going, and starts again what a lost worker took with it."""

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ftmatrix.errors import first_line
from ftmatrix.machine import Interrupts
from ftmatrix.process.engines.base import Engine, Job, RunCell
from ftmatrix.spec import Cell

POLL_SECONDS = 0.5
REST = 9
"""How many times as long to wait as it took to ask: thousands of jobs are asked for one by one."""
MOST_REST_SECONDS = 5
STOP_SECONDS = 20
"""How long cancelled jobs may take to end."""
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
    with Interrupts() as interrupts:
        try:
            while waiting or going:
                interrupts.check()
                room = len(waiting) if engine.n_jobs is None else engine.n_jobs - len(going)
                starting = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                if starting:
                    jobs = engine.submit(run, [cells[index] for index in starting])
                    going |= dict(zip(starting, jobs, strict=True))
                asked_at = time.monotonic()
                over = [index for index, job in going.items() if job.done()]
                rest = REST * (time.monotonic() - asked_at)
                for index in over:
                    attempts[index] += 1
                    outcome = _outcome(going.pop(index))
                    if isinstance(outcome, Lost) and attempts[index] < ATTEMPTS:
                        waiting.append(index)
                        continue
                    found[index] = outcome
                    ended(cells[index], outcome)
                time.sleep(min(max(POLL_SECONDS, rest), MOST_REST_SECONDS) if going else 0)
        except BaseException:
            _cancel(list(going.values()))
            raise
    return [found[index] for index in range(len(cells))]


def _cancel(jobs: Sequence[Job]) -> None:
    """Cancel jobs, and give those that run the time to save how far they came."""
    for job in jobs:
        with suppress(Exception):  # it may just be over
            job.cancel()
    patience = time.monotonic() + STOP_SECONDS
    while time.monotonic() < patience and not all(job.done() for job in jobs):
        time.sleep(POLL_SECONDS)


def _outcome(job: Job) -> str | Lost:
    try:
        return job.result()
    except Exception as error:  # the engine's own kinds, and whatever the job raised
        return Lost(_cause(error))


def _cause(error: Exception) -> str:
    """What an engine's error comes from: it may carry the text of a whole traceback."""
    named = [line for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception|Exit): ", line)]
    return first_line(RuntimeError(named[-1])) if named else f"{type(error).__name__}: {first_line(error)}"

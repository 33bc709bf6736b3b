"""Runs what a sweep has planned: here, in processes side by side, or as the jobs of an engine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ftmatrix.errors import ConfigError, StoppedError, UndeliveredError
from ftmatrix.process import (
    ATTEMPTS,
    Display,
    Engine,
    JobDisplay,
    Leases,
    Listener,
    Lost,
    Scheduler,
    most_on_a_card,
    open_console,
    run_jobs,
    warm_up,
)
from ftmatrix.records import CellResult, Outcome
from ftmatrix.spec import Cell, FailedCell, Prepared, ReadyCell, settled
from ftmatrix.store import Courier, Store, facts_of, recover
from ftmatrix.sweep.planning import Planned, plan, side_by_side

RETRY_SECONDS = 5.0
"""Between two questions of a job to a store that is away."""
LAST_WORDS_SECONDS = 10.0
"""How long an interrupted sweep tries to close its runs; what it leaves open the next one closes."""


@dataclass(frozen=True)
class Running:
    """A sweep that is under way. `sweep_run` is its own run in MLflow; empty where that is another machine's affair."""

    store: Store
    name: str
    sweep_run: str
    console: Console
    listeners: tuple[Listener, ...] = ()

    def here(self, planned: Sequence[Planned], n_jobs: int | str | None) -> list[str]:
        """Run on this machine what has to be run; the run of every cell, in order.

        Raises:
            UndeliveredError: MLflow stayed away; the results wait on this disk.
        """
        ready = [item.prepared for item in planned if isinstance(item.prepared, ReadyCell) and not item.done_run]
        waiting = list({cell.fingerprint: cell for cell in ready}.values())  # one that the grid names twice runs once
        jobs = side_by_side(planned, n_jobs)
        if most_on_a_card(waiting, jobs) > 1:
            waiting = [replace(cell, shares_card=bool(cell.accelerator.cards)) for cell in waiting]
        failed = {id(item): self._record_failure(item.prepared) for item in planned}
        display = Display(self.console, waiting, quiet=planned[0].prepared.cell.quiet)
        courier = Courier(self.store, self.sweep_run, display.tell)
        scheduler = Scheduler(self.store, self.name, display, courier, self.listeners)
        try:
            scheduler.run(waiting, jobs, Leases(waiting, jobs))
        except BaseException:
            left = len(waiting) - display.done - scheduler.stopped
            display.tell(
                f"stopped: {display.done} of {len(waiting)} cells are over, {scheduler.stopped} were running and go on "
                f"from what they saved, {left} had not begun"
            )
            courier.close(0, at_most=LAST_WORDS_SECONDS)
            raise
        cell = planned[0].prepared.cell
        minutes = cell.tracking.patience_minutes
        if courier.trouble:
            display.tell(
                f"all cells are over; waiting up to {minutes:g} min for MLflow (Ctrl-C leaves the results here)"
            )
        if undelivered := courier.close(60 * minutes):
            raise UndeliveredError(
                f"{self.store.shown}: MLflow takes nothing ({courier.trouble}); {len(undelivered)} result(s) wait in "
                f"{cell.work_dir}, the same command delivers them"
            )
        return [item.done_run or failed[id(item)] or scheduler.run_ids[item.fingerprint] for item in planned]

    def on(self, engine: Engine, planned: Sequence[Planned]) -> list[str]:
        """Have an engine run what has to be run; the run of every cell, in order."""
        cells = [_as_job(item.prepared, self.name) for item in planned]
        keys = [repr(cell) for cell in cells]  # a cell that the grid names twice runs once
        distinct = {key: cell for key, cell, item in zip(keys, cells, planned, strict=True) if not item.done_run}
        follower = JobDisplay(self.console, len(distinct), quiet=planned[0].prepared.cell.quiet)
        courier = Courier(self.store, self.sweep_run, follower.tell)  # says that the sweep is alive
        try:
            follower.tell(f"{len(distinct)} cells go to {engine.name}")
            ends = run_jobs(engine, run_cell, list(distinct.values()), follower.ended)
        finally:
            courier.close(0, at_most=LAST_WORDS_SECONDS)
            engine.close()
        recover(self.store, Path(planned[0].prepared.cell.work_dir).absolute())  # runs that lost workers left open
        run_of = dict(zip(distinct, ends, strict=True))
        for key, end in run_of.items():
            if isinstance(end, Lost):
                result = CellResult(Outcome.CRASHED, f"{engine.name} lost it {ATTEMPTS} times; last: {end.reason}")
                run_of[key] = self._record(FailedCell(distinct[key], result))
        return [item.done_run or str(run_of[key]) for key, item in zip(keys, planned, strict=True)]

    def _record_failure(self, prepared: Prepared) -> str | None:
        """A run for a cell that couldn't start, so that it is a row like any other. None for a cell that can."""
        return self._record(prepared) if isinstance(prepared, FailedCell) else None

    def _record(self, failed: FailedCell) -> str:
        return self.store.record(facts_of(failed, goal=self.store.goal, sweep=self.name), failed.result)


def run_cell(cell: Cell) -> str:
    """An engine's job: one cell, in a process of its own where this is called. Returns the id of its run.

    Raises:
        UndeliveredError: MLflow stayed away; the result waits on that machine's disk, and is found by the next attempt.
    """
    store = _reached(cell)
    assert cell.tracking.sweep is not None
    try:
        (run_id,) = Running(store, cell.tracking.sweep, "", open_console()).here(
            plan([cell], store, meanwhile=warm_up), 1
        )
    except KeyboardInterrupt as error:  # an engine may take it for its own
        raise StoppedError("the job was stopped") from error
    return run_id


def _reached(cell: Cell) -> Store:
    """The cell's store, which may be away for as long as any sweep would wait for it."""
    until = time.monotonic() + 60 * cell.tracking.patience_minutes
    while True:
        try:
            return Store(cell.tracking.store, cell.study)
        except ConfigError:
            if time.monotonic() > until:
                raise
            time.sleep(RETRY_SECONDS)


def _as_job(prepared: Prepared, sweep_name: str) -> Cell:
    """What a job is given: the cell, with what this machine's environment makes of it, and its sweep's name.

    A hub's model that this machine has is pinned to the commit, so that all jobs take the same, and don't ask which.
    """
    here = settled(prepared.cell)
    revision = here.model.revision
    if isinstance(prepared, ReadyCell) and here.model.hub_id is not None and here.model.path is None:
        revision = prepared.checkpoint.revision
    return replace(
        here,
        quiet=True,
        report=False,
        data=replace(here.data, path=_absolute(here.data.path)),
        model=replace(here.model, path=_absolute(here.model.path), revision=revision),
        tracking=replace(here.tracking, sweep=sweep_name),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())

"""A sweep: plan every cell, skip what is done, run the rest side by side, end with the table."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from multiprocessing.connection import Connection, wait
from typing import cast

from rich.console import Console

from ftmatrix.advice import with_advice
from ftmatrix.config import Cell
from ftmatrix.display import Display, open_console
from ftmatrix.errors import ConfigError
from ftmatrix.interrupts import Interrupts
from ftmatrix.isolation import Began, CellProcess, Ended, Stepped, warm_up
from ftmatrix.plan_table import plan_reasons, plan_table, plan_totals
from ftmatrix.planning import Planned, plan, side_by_side
from ftmatrix.preparation import FailedCell, Prepared, ReadyCell
from ftmatrix.recording import RunWriter
from ftmatrix.records import Outcome
from ftmatrix.table import as_csv, as_text, failures, fitting_table
from ftmatrix.tracking import Row, Store, tracking_uri

STOP_SECONDS = 20
"""How long a stopped cell may take to save its progress."""
POLL_SECONDS = 0.5
"""How long an interrupt may wait for the next event."""


def sweep(cells: Sequence[Cell], *, n_jobs: int | str | None = None) -> list[Row | None]:
    """Run the cells and print their comparison. Returns a row a cell; None each where only the plan was asked for.

    Raises:
        ConfigError: the cells don't agree on where results go, or `n_jobs` is no count.
        KeyboardInterrupt: after the running cells were stopped and their runs closed.
    """
    console = open_console()
    first = cells[0]
    _check(cells, n_jobs)
    if first.plan:
        _show_plan(cells, n_jobs, console)
        return [None] * len(cells)
    store = Store(tracking_uri(first.tracking.uri), first.study)
    planned = plan(cells, store)
    name = first.tracking.sweep or f"{datetime.now():%Y%m%d-%H%M%S}"
    ready = [item.prepared for item in planned if isinstance(item.prepared, ReadyCell) and not item.done_run]
    waiting = list({cell.fingerprint: cell for cell in ready}.values())  # a cell that the grid names twice runs once
    done = sum(item.done_run is not None for item in planned)
    if done:
        console.print(
            f"{done} of {len(planned)} cells are done already and are taken as they are (force=true runs them again)"
        )
    for note in data_notes(planned):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    with store.sweep(name, len(planned)) as writer:
        runs = [item.done_run or _record_failure(item.prepared, store, name) for item in planned]
        started = _Scheduler(store, name, Display(console, waiting)).run(waiting, side_by_side(planned, n_jobs))
        run_ids = [run or started[item.fingerprint] for run, item in zip(runs, planned, strict=True)]
        row_of = {row.run_id: row for row in store.rows(list(dict.fromkeys(run_ids)))}
        rows = list(row_of.values())
        title = f"{first.study}, sweep {name}"
        writer.text("comparison.csv", as_csv(rows))
        writer.text("comparison.txt", as_text(rows, title=title))
        writer.describe(f"```\n{as_text(rows, title=title)}\n```")
    console.print(fitting_table(rows, title=title, console=console))
    for line in failures(rows):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    recorded = f"Recorded in {store.uri}, experiment {store.study!r}; `make ui` shows every run."
    compared = f"`ftmatrix report {store.study}` compares methods, rates and seeds."
    for line in (compared, recorded):
        console.print(line, highlight=False, soft_wrap=True)
    return [row_of[run_id] for run_id in run_ids]


def _show_plan(cells: Sequence[Cell], n_jobs: int | str | None, console: Console) -> None:
    """Print what a sweep would do. A store that isn't there, or doesn't answer, is neither made nor needed."""
    notes = []
    uri, study = tracking_uri(cells[0].tracking.uri), cells[0].study
    try:
        store = Store(uri, study, create=False)
    except ConfigError:
        store = None
        notes.append(f"No finished cells to go by: {uri} has none of {study!r}, or can't be reached.")
    planned = plan(cells, store, fetch=False)
    console.print(plan_table(planned))
    for line in (*plan_reasons(planned), *plan_totals(planned, side_by_side(planned, n_jobs)), *notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check(cells: Sequence[Cell], n_jobs: int | str | None) -> None:
    studies = sorted({cell.study for cell in cells})
    uris = sorted({tracking_uri(cell.tracking.uri) for cell in cells})
    for key, values in (("study", studies), ("tracking.uri", uris)):
        if len(values) > 1:
            raise ConfigError(f"{key} differs between the cells of one sweep ({', '.join(values)}); take one")
    if not (n_jobs in (None, "auto") or (isinstance(n_jobs, int) and n_jobs >= 1)):
        raise ConfigError(f"n_jobs={n_jobs}: must be at least 1, or auto for as many as cores and memory allow")


def data_notes(planned: Sequence[Planned]) -> list[str]:
    """What the checks of the data sets found, a line a finding."""
    ready = [item.prepared for item in planned if isinstance(item.prepared, ReadyCell)]
    found = (f"{cell.cell.data.title}: {note}" for cell in ready for note in cell.dataset.notes)
    return list(dict.fromkeys(found))


def _record_failure(prepared: Prepared, store: Store, sweep_name: str) -> str | None:
    """A run for a cell that couldn't start, so that it is a row like any other. None for a cell that can."""
    if not isinstance(prepared, FailedCell):
        return None
    writer = store.start(prepared, sweep_name)
    writer.finish(prepared.result)
    return writer.run_id


class _Scheduler:
    """Keeps up to n cells running, and passes on what they report."""

    def __init__(self, store: Store, sweep_name: str, display: Display) -> None:
        self.store, self.sweep_name, self.display = store, sweep_name, display
        self.running: dict[Connection, tuple[CellProcess, RunWriter]] = {}

    def run(self, cells: Sequence[ReadyCell], jobs: int) -> dict[str, str]:
        """Run every cell once; run ids by fingerprint."""
        waiting = list(cells)
        run_ids: dict[str, str] = {}
        with self.display.live(), Interrupts() as interrupts:
            try:
                while waiting or self.running:
                    while waiting and len(self.running) < jobs:
                        interrupts.check()
                        ready = waiting.pop(0)
                        run_ids[ready.fingerprint] = self._start(ready)
                    for connection in wait(list(self.running), timeout=POLL_SECONDS):
                        self._receive(cast(Connection, connection))
                    interrupts.check()
            except BaseException:
                self._stop()
                raise
        return run_ids

    def _start(self, ready: ReadyCell) -> str:
        warm_up(ready.accelerator.device)
        writer = self.store.start(ready, self.sweep_name)
        try:
            process = CellProcess(ready)
        except BaseException:
            writer.abandon("its process could not be started")
            raise
        self.running[process.connection] = (process, writer)
        self.display.began(ready)
        return writer.run_id

    def _receive(self, connection: Connection) -> None:
        process, writer = self.running[connection]
        match process.receive():
            case Began(phase):
                self.display.phase(process.ready, phase)
            case Stepped(steps):
                writer.steps(steps)
                self.display.stepped(process.ready, steps)
            case Ended(ended):
                result = with_advice(process.ready, ended)
                writer.finish(result, process.ready.folder)
                del self.running[connection]
                process.close()
                self.display.ended(process.ready, result)
                if result.outcome is Outcome.COMPLETED:
                    shutil.rmtree(process.ready.folder, ignore_errors=True)

    def _stop(self) -> None:
        """End every running cell, with its progress saved where it trains, and close its run."""
        for process, _ in self.running.values():
            process.ask_to_stop()
        patience = time.monotonic() + STOP_SECONDS
        for process, writer in self.running.values():
            reason = None
            with suppress(KeyboardInterrupt):  # asked twice: no more waiting
                reason = process.last_words(patience)
            process.kill()
            writer.abandon(reason or "the sweep was stopped")
        self.running.clear()

"""Keeps cells running side by side, and follows each from its process to its run in MLflow."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, TypeVar, cast

from ftmatrix.errors import first_line
from ftmatrix.forecast import with_advice
from ftmatrix.machine import Interrupts
from ftmatrix.process.child import Began, Ended, Stepped
from ftmatrix.process.display import Display
from ftmatrix.process.isolation import CellProcess, warm_up
from ftmatrix.process.leases import Leases, NoCardError
from ftmatrix.records import CellResult, Outcome
from ftmatrix.spec import ReadyCell
from ftmatrix.store import WEIGHTS_TAG, Courier, Delivery, Journal, Store, facts_of, is_alive, serves

if TYPE_CHECKING:
    from mlflow.entities import Run

STOP_SECONDS = 20
"""How long a stopped cell may take to save its progress, or to finish what comes after its training."""
POLL_SECONDS = 0.5
"""How long an interrupt may wait for the next event."""
LOOK_SECONDS = 5.0
"""How often to look whether another sweep has let go of a cell."""
Answer = TypeVar("Answer")


class Scheduler:
    """Runs cells, at most so many at once. `run_ids` knows where each one's result is, by fingerprint."""

    def __init__(self, store: Store, sweep_name: str, display: Display, courier: Courier) -> None:
        self.store, self.sweep_name, self.display, self.courier = store, sweep_name, display, courier
        self.running: dict[Connection, tuple[CellProcess, Delivery]] = {}
        self.leases = Leases((), 1)
        self.stopped = 0
        self._cells: Sequence[ReadyCell] = ()
        self._begun: dict[str, Delivery] = {}
        self._elsewhere: dict[str, str] = {}

    @property
    def run_ids(self) -> dict[str, str]:
        """The run of every cell that has one by now."""
        begun = {fingerprint: delivery.run_id for fingerprint, delivery in self._begun.items()}
        return self._elsewhere | {fingerprint: run_id for fingerprint, run_id in begun.items() if run_id}

    def run(self, cells: Sequence[ReadyCell], jobs: int, leases: Leases) -> None:
        """Run every cell once, on its own cards. One that another sweep runs just now is waited for, and its result
        taken.
        """
        self._cells, self.leases = cells, leases
        waiting, busy = list(cells), list[ReadyCell]()
        looked_at = time.monotonic()
        with self.display.live(), Interrupts() as interrupts:
            try:
                while waiting or busy or self.running:
                    if busy and not waiting and time.monotonic() - looked_at > LOOK_SECONDS:
                        waiting, busy, looked_at = busy, [], time.monotonic()
                    while waiting and len(self.running) < jobs and leases.has_room(waiting[0]):
                        interrupts.check()
                        if not self._start(ready := waiting.pop(0)):
                            self.display.waits(ready)
                            busy.append(ready)
                    for connection in self._events():
                        self._receive(connection)
                    interrupts.check()
            except BaseException:
                self._stop()
                raise

    def _events(self) -> list[Connection]:
        if not self.running:
            time.sleep(POLL_SECONDS)
        return [cast(Connection, found) for found in wait(list(self.running), timeout=POLL_SECONDS)]

    def _start(self, ready: ReadyCell) -> bool:
        """Begin a cell, or take it as done; False while another sweep has it."""
        facts = facts_of(ready, goal=self.store.goal, sweep=self.sweep_name)
        journal = None
        try:
            journal = Journal.claim(ready.folder)
            if journal is None:
                return False
            _check_free(journal)
            if (left := journal.result) and left.result.outcome is Outcome.COMPLETED:  # of a sweep that just died
                if _is_enough(journal, ready):
                    self._take_up(ready, Delivery(self.store, journal))
                    self.display.taken(ready)
                    return True
                Delivery(self.store, journal).advance()  # first: what begins now begins on an empty record
                return self._start(ready)
            elsewhere = None if self.courier.away else self._asked(lambda: self._elsewhere_now(ready))
            if elsewhere is not None:
                journal.release()
                return self._take_from(ready, elsewhere)
            journal.begin(facts, keep=() if ready.cell.force else (ready.progress,))
        except Exception as error:  # the disk, an unreadable record, a store that doesn't take the one that waits
            if journal is not None:
                journal.release()
            delivery = Delivery(self.store, Journal.in_memory(facts))
            self.display.began(ready)
            self._take_up(ready, delivery)
            reason = f"{type(error).__name__} while starting: {first_line(error)}"
            self._ended(ready, delivery, CellResult(Outcome.CRASHED, reason))
            return True
        return self._launch(ready, Delivery(self.store, journal))

    def _launch(self, ready: ReadyCell, delivery: Delivery) -> bool:
        if not self.courier.away and self._asked(lambda: self._gives_way(ready, delivery)):
            return False
        warm_up(self._cells)
        self.display.began(ready)
        self._take_up(ready, delivery)
        try:
            cards = self.leases.take(ready)
        except NoCardError as error:
            self._ended(ready, delivery, CellResult(Outcome.UNSUPPORTED, str(error)))
            return True
        try:
            process = CellProcess(ready, cards)
        except (OSError, EOFError) as error:
            self.leases.give_back(ready, cards)
            self._ended(ready, delivery, CellResult(Outcome.CRASHED, f"its process didn't start: {first_line(error)}"))
        else:
            self.running[process.connection] = (process, delivery)
        return True

    def _take_up(self, ready: ReadyCell, delivery: Delivery) -> None:
        self._begun[ready.fingerprint] = delivery
        self.courier.follow(delivery)

    def _take_from(self, ready: ReadyCell, run: "Run") -> bool:
        """Take another sweep's result for this one's, if it is there and enough."""
        if ready.cell.force or not serves(run, ready):
            return False
        self._elsewhere[ready.fingerprint] = run.info.run_id
        self.display.taken(ready)
        return True

    def _elsewhere_now(self, ready: ReadyCell) -> "Run | None":
        """The run of another sweep that has finished the cell since this one began, or is at it."""
        runs = self.store.runs_of(ready.fingerprint)
        done = [] if ready.cell.force else [run for run in runs if serves(run, ready)]
        return next(iter([*done, *_going(runs)]), None)

    def _gives_way(self, ready: ReadyCell, delivery: Delivery) -> bool:
        """Whether another sweep began the cell before: then this one's run is taken back.

        Asked once the run is there, so that of two that begin at once each sees the other.
        """
        own = delivery.open(starting=True).run_id
        runs = self.store.runs_of(ready.fingerprint)
        first = min(_going(runs), key=lambda run: (run.info.start_time, run.info.run_id), default=None)
        finished = not ready.cell.force and any(serves(run, ready) for run in runs)
        if (first is None or first.info.run_id == own) and not finished:
            return False
        delivery.take_back()
        return True

    def _asked(self, ask: Callable[[], Answer]) -> Answer | None:
        """What the store answers; None where it is away, and the cell starts without it."""
        try:
            return ask()
        except Exception as error:
            self.courier.failed(error)
            return None

    def _receive(self, connection: Connection) -> None:
        process, delivery = self.running[connection]
        match process.receive():
            case Began(phase):
                self.display.phase(process.ready, phase)
            case Stepped(steps):
                self.display.stepped(process.ready, steps)
            case Ended(result):
                del self.running[connection]
                process.close()
                result = self._given_back(process, result)
                with suppress(Exception):  # advice is worth no result
                    result = with_advice(process.ready, result)
                self._ended(process.ready, delivery, result)

    def _given_back(self, process: CellProcess, result: CellResult) -> CellResult:
        """End a cell's lease of its cards. Where it crashed because one is gone, its result says so."""
        lost = self.leases.lost(process.ready, process.cards) if result.outcome is Outcome.CRASHED else []
        self.leases.give_back(process.ready, process.cards)
        if not lost:
            return result
        gone = f"card {' and '.join(lost)} of device={process.ready.accelerator.kind} is gone"
        self.display.tell(f"{gone}: no more cells go there")
        return replace(result, reason=f"{result.reason}; {gone}")

    def _ended(self, ready: ReadyCell, delivery: Delivery, result: CellResult) -> None:
        """Note how a cell ended, unless its process came to do so."""
        left = delivery.journal.look()
        if left is None:
            delivery.journal.end(result)
        self.courier.hurry()
        self.display.ended(ready, left.result if left else result)

    def _stop(self) -> None:
        """End every running cell: one that trains saves its progress, one that has trained may finish in time."""
        for process, _ in self.running.values():
            process.ask_to_stop()
        patience = time.monotonic() + STOP_SECONDS
        last_words: dict[Connection, CellResult | None] = {}
        try:
            for connection, (process, _) in self.running.items():
                try:
                    last_words[connection] = process.last_words(patience)
                except KeyboardInterrupt:  # asked twice: no more waiting
                    patience = 0.0
        finally:
            for connection, (process, delivery) in self.running.items():
                process.kill()  # before its record is looked at: nothing is written after that
                result = last_words.get(connection) or CellResult(Outcome.INTERRUPTED, "the sweep was stopped")
                if result.outcome is Outcome.INTERRUPTED and delivery.journal.look() is None:
                    delivery.journal.end(result)
                    self.stopped += 1
                else:
                    self._ended(process.ready, delivery, result)
            self.running.clear()


def _check_free(journal: Journal) -> None:
    """Refuse a folder in which something lies that may be the only copy of a result."""
    if not journal.is_readable:
        raise OSError(f"{journal.folder} holds a record that can't be read; mend it, or move it away")


def _is_enough(journal: Journal, ready: ReadyCell) -> bool:
    """Whether the result that waits in a record has all that the cell asks for."""
    assert journal.facts is not None
    return not ready.cell.force and (not ready.cell.save_model or WEIGHTS_TAG in journal.facts.tags)


def _going(runs: "Sequence[Run]") -> "list[Run]":
    """Those that a process, alive, is at."""
    return [run for run in runs if run.info.status == "RUNNING" and is_alive(run)]

"""Keeps cells running side by side, and follows each from its process to its run in MLflow."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import cast

from ftmatrix.errors import first_line
from ftmatrix.forecast import with_advice
from ftmatrix.machine import Interrupts
from ftmatrix.process.arbitration import Arbiter, Busy, Finished, Left, Ours, Unrecorded
from ftmatrix.process.child import Began, Ended, Stepped
from ftmatrix.process.display import Display
from ftmatrix.process.isolation import CellProcess, warm_up
from ftmatrix.process.leases import Leases, NoCardError
from ftmatrix.process.listening import Listener, Listeners
from ftmatrix.records import CellResult, Outcome
from ftmatrix.spec import ReadyCell
from ftmatrix.store import Courier, Delivery, Store

STOP_SECONDS = 20
"""How long a stopped cell may take to save its progress, or to finish what comes after its training."""
POLL_SECONDS = 0.5
"""How long an interrupt may wait for the next event."""
LOOK_SECONDS = 5.0
"""How often to look whether another sweep has let go of a cell."""


class Scheduler:
    """Runs cells, at most so many at once. `run_ids` knows where each one's result is, by fingerprint."""

    def __init__(
        self, store: Store, sweep_name: str, display: Display, courier: Courier, listeners: Sequence[Listener] = ()
    ) -> None:
        self.arbiter = Arbiter(store, sweep_name, courier)
        self.display, self.courier = display, courier
        self.listeners = Listeners([display, *listeners], display.tell)
        self.running: dict[Connection, tuple[CellProcess, Delivery]] = {}
        self.leases = Leases((), 1)
        self.stopped = 0
        self._cells: Sequence[ReadyCell] = ()
        self._begun: dict[str, Delivery] = {}
        self._elsewhere: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        """Why a listener had a cell stopped."""

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
                            self.listeners.waits(ready)
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
        match self.arbiter.claim(ready):
            case Busy():
                return False
            case Finished(run_id):
                self._elsewhere[ready.fingerprint] = run_id
                self.listeners.taken(ready)
            case Left(delivery):
                self._follow(ready, delivery)
                self.listeners.taken(ready)
            case Unrecorded(delivery, reason):
                self.listeners.began(ready)
                self._follow(ready, delivery)
                self._ended(ready, delivery, CellResult(Outcome.CRASHED, reason))
            case Ours(delivery):
                self._launch(ready, delivery)
        return True

    def _launch(self, ready: ReadyCell, delivery: Delivery) -> None:
        """Start a cell's process on cards of its own."""
        warm_up(self._cells)
        self.listeners.began(ready)
        self._follow(ready, delivery)
        try:
            cards = self.leases.take(ready)
        except NoCardError as error:
            self._ended(ready, delivery, CellResult(Outcome.UNSUPPORTED, str(error)))
            return
        try:
            process = CellProcess(ready, cards)
        except (OSError, EOFError) as error:
            self.leases.give_back(ready, cards)
            self._ended(ready, delivery, CellResult(Outcome.CRASHED, f"its process didn't start: {first_line(error)}"))
        else:
            self.running[process.connection] = (process, delivery)

    def _follow(self, ready: ReadyCell, delivery: Delivery) -> None:
        self._begun[ready.fingerprint] = delivery
        self.courier.follow(delivery)

    def _receive(self, connection: Connection) -> None:
        process, delivery = self.running[connection]
        match process.receive():
            case Began(phase):
                self.listeners.entered(process.ready, phase)
            case Stepped(steps):
                if reason := self.listeners.stepped(process.ready, steps):
                    self._reasons.setdefault(process.ready.fingerprint, reason)
                    process.ask_to_stop()
            case Ended(result):
                del self.running[connection]
                process.close()
                result = self._with_reason(process.ready, self._given_back(process, result))
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

    def _with_reason(self, ready: ReadyCell, result: CellResult) -> CellResult:
        """A result that says why a listener had its cell stopped; it may have been too late for that."""
        reason = self._reasons.get(ready.fingerprint)
        if reason is None or result.outcome is not Outcome.INTERRUPTED:
            return result
        return replace(result, reason=f"{reason}; {result.reason}")

    def _ended(self, ready: ReadyCell, delivery: Delivery, result: CellResult) -> None:
        """Note how a cell ended, unless its process came to do so."""
        left = delivery.journal.look()
        if left is None:
            delivery.journal.end(result)
        self.courier.hurry()
        self.listeners.ended(ready, left.result if left else result)

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

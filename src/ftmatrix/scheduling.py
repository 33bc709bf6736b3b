"""Keeps cells running side by side, and follows each from its process to its run in MLflow."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TypeVar, cast

from ftmatrix.advice import with_advice
from ftmatrix.delivery import Courier, Delivery
from ftmatrix.display import Display
from ftmatrix.errors import first_line
from ftmatrix.interrupts import Interrupts
from ftmatrix.isolation import Began, CellProcess, Ended, Stepped, warm_up
from ftmatrix.journal import Journal
from ftmatrix.preparation import ReadyCell
from ftmatrix.recording import facts_of
from ftmatrix.records import CellResult, Outcome
from ftmatrix.tracking import Store

STOP_SECONDS = 20
"""How long a stopped cell may take to save its progress."""
POLL_SECONDS = 0.5
"""How long an interrupt may wait for the next event."""
LOOK_SECONDS = 2.0
"""How often to look whether another sweep has let go of a cell."""
TRIES = 3
"""How often a store that doesn't answer is asked before a cell starts without it."""

Answer = TypeVar("Answer")


class Scheduler:
    """Runs cells, at most so many at once. `run_ids` knows where each one's result is, by fingerprint."""

    def __init__(self, store: Store, sweep_name: str, display: Display, courier: Courier) -> None:
        self.store, self.sweep_name, self.display, self.courier = store, sweep_name, display, courier
        self.running: dict[Connection, tuple[CellProcess, Delivery]] = {}
        self.stopped = 0
        self._begun: dict[str, Delivery] = {}
        self._elsewhere: dict[str, str] = {}

    @property
    def run_ids(self) -> dict[str, str]:
        """The run of every cell that has one by now."""
        begun = {fingerprint: delivery.run_id for fingerprint, delivery in self._begun.items()}
        return self._elsewhere | {fingerprint: run_id for fingerprint, run_id in begun.items() if run_id}

    def run(self, cells: Sequence[ReadyCell], jobs: int) -> None:
        """Run every cell once. One that another sweep runs just now is waited for, and its result taken."""
        waiting, busy = list(cells), list[ReadyCell]()
        looked_at = time.monotonic()
        with self.display.live(), Interrupts() as interrupts:
            try:
                while waiting or busy or self.running:
                    if busy and not waiting and time.monotonic() - looked_at > LOOK_SECONDS:
                        waiting, busy, looked_at = busy, [], time.monotonic()
                    while waiting and len(self.running) < jobs:
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
        try:
            journal = Journal.claim(ready.folder)
            if journal is None:
                return False
            if run_id := self._done_meanwhile(ready):
                journal.release()
                self._elsewhere[ready.fingerprint] = run_id
                self.display.taken(ready)
                return True
            facts = facts_of(ready, goal=self.store.goal, sweep=self.sweep_name)
            journal.begin(facts, keep=() if ready.cell.force else (ready.progress,))
        except OSError as error:
            self._refuse(ready, error)
            return True
        delivery = Delivery(self.store, journal)
        if self._gives_way(ready, delivery):
            journal.delivered(complete=False)
            journal.release()
            return False
        self._begun[ready.fingerprint] = delivery
        warm_up(ready.accelerator.device)
        self.display.began(ready)
        try:
            process = CellProcess(ready)
        except OSError as error:
            self._ended(ready, delivery, CellResult(Outcome.CRASHED, f"its process didn't start: {first_line(error)}"))
        else:
            self.running[process.connection] = (process, delivery)
        self.courier.follow(delivery)
        return True

    def _done_meanwhile(self, ready: ReadyCell) -> str | None:
        """The run of another sweep that finished the cell since this one began; None too where the store is away."""
        if ready.cell.force:
            return None
        return self._asked(lambda: self.store.finished([ready]).get(ready.fingerprint))

    def _gives_way(self, ready: ReadyCell, delivery: Delivery) -> bool:
        """Whether a sweep elsewhere, on the same store, has the cell. A store that is away knows of none."""
        to_finished = not ready.cell.force and not ready.cell.save_model
        return bool(self._asked(lambda: delivery.gives_way(to_finished=to_finished)))

    def _asked(self, ask: Callable[[], Answer]) -> Answer | None:
        """What the store answers; None where it is away. One that is merely busy is asked again."""
        for _ in range(0 if self.courier.trouble else TRIES):
            with suppress(Exception):
                return ask()
        return None

    def _refuse(self, ready: ReadyCell, error: OSError) -> None:
        """A row for a cell whose folder can't be written."""
        result = CellResult(Outcome.CRASHED, f"{type(error).__name__} while starting: {first_line(error)}")
        facts = facts_of(ready, goal=self.store.goal, sweep=self.sweep_name)
        self._elsewhere[ready.fingerprint] = self.store.record(facts, result)
        self.display.began(ready)
        self.display.ended(ready, result)

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
                self._ended(process.ready, delivery, with_advice(process.ready, result))

    def _ended(self, ready: ReadyCell, delivery: Delivery, result: CellResult) -> None:
        """Note how a cell ended, unless its process came to do so."""
        left = delivery.journal.look()
        if left is None:
            delivery.journal.end(result)
        self.courier.hurry()
        self.display.ended(ready, left.result if left else result)

    def _stop(self) -> None:
        """End every running cell, with its progress saved where it trains."""
        for process, _ in self.running.values():
            process.ask_to_stop()
        patience = time.monotonic() + STOP_SECONDS
        for process, delivery in self.running.values():
            reason = None
            with suppress(KeyboardInterrupt):  # asked twice: no more waiting
                reason = process.last_words(patience)
            process.kill()
            if delivery.journal.look() is None:
                delivery.journal.end(CellResult(Outcome.INTERRUPTED, reason or "the sweep was stopped"))
                self.stopped += 1
        self.running.clear()

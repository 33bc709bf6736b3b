"""Bringing records to MLflow: beside the training, and as often as it takes."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ftmatrix.errors import first_line
from ftmatrix.journal import Journal, RunFacts
from ftmatrix.ownership import SEEN_SECONDS, is_alive
from ftmatrix.recording import RunWriter
from ftmatrix.records import Outcome
from ftmatrix.tracking import Store, is_complete

ROUND_SECONDS = 1.0
"""Between two rounds over all records; twice as long after each that failed."""
LONGEST_PAUSE_SECONDS = 20.0
STEPS_A_BATCH = 150
"""Steps that wait for one another, so that a batch is worth its call."""


class Delivery:
    """Brings one record to its run. Interrupted anywhere and asked again, it goes on, and repeats nothing."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self.store, self.journal = store, journal
        self._writer: RunWriter | None = None
        self._sent = 0
        self._seen_at = time.monotonic()

    @property
    def run_id(self) -> str | None:
        """The run in MLflow, once there is one."""
        return self._facts.run_id

    @property
    def _facts(self) -> RunFacts:
        assert self.journal.facts is not None
        return self.journal.facts

    def open(self) -> RunWriter:
        """The run; made now if there is none yet."""
        if self._writer is None:
            run_id = self.run_id or self.store.run_of(self._facts) or self.store.begin(self._facts)
            with suppress(OSError):  # by its key the run is found, too
                self.journal.note(replace(self._facts, run_id=run_id))
            writer = RunWriter(self.store.client, run_id)
            writer.open(self._facts)
            self._writer = writer
        return self._writer

    def gives_way(self, *, to_finished: bool) -> bool:
        """Whether another process, alive, began the same cell before, or has finished it: then this run is taken back.

        To be asked once the run is there, so that of two that begin at once each sees the other.
        """
        own = self.open().run_id
        runs = self.store.runs_of(self._facts.tags["fingerprint"])
        begun = [run for run in runs if run.info.status == "RUNNING" and is_alive(run)]
        first = min(begun, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
        if (first is None or first.info.run_id == own) and not (to_finished and any(is_complete(run) for run in runs)):
            return False
        self.store.client.delete_run(own)
        return True

    def advance(self) -> bool:
        """Bring what is new. True once the result is there and the run closed."""
        writer = self.open()
        timed = self.journal.look()  # before the steps, so that none comes after it
        steps = self.journal.steps(self._sent)
        if timed is not None or len(steps) >= STEPS_A_BATCH:
            writer.steps(steps)
            self._sent += len(steps)
        if timed is None:
            if time.monotonic() - self._seen_at > SEEN_SECONDS:
                self.store.seen(writer.run_id)
                self._seen_at = time.monotonic()
            return False
        writer.finish(timed, self.journal.files)
        self.journal.delivered(complete=timed.result.outcome is Outcome.COMPLETED)
        self.journal.release()
        return True


class Courier:
    """Follows records in a thread of its own until their runs are closed. `tell` hears of a store that fails."""

    def __init__(self, store: Store, sweep_run_id: str, tell: Callable[[str], None]) -> None:
        self.store, self.sweep_run_id, self.tell = store, sweep_run_id, tell
        self.trouble: str | None = None
        """What the store said when it last failed; None while it answers."""
        self._following: list[Delivery] = []
        self._wake = threading.Event()
        self._closing = self._gave_up = False
        self._seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._follow, name="courier", daemon=True)
        self._thread.start()

    def follow(self, delivery: Delivery) -> None:
        """Bring a record to its run from now on."""
        self._following.append(delivery)

    def hurry(self) -> None:
        """Begin the next round now: there is a result."""
        self._wake.set()

    def close(self, patience: float) -> list[Delivery]:
        """Wait until all is delivered, at most so many seconds. Returns what isn't."""
        self._closing = True
        self._wake.set()
        self._thread.join(patience)
        self._gave_up = True
        undelivered = list(self._following)
        for delivery in undelivered:
            delivery.journal.release()
        return undelivered

    def _follow(self) -> None:
        pause = ROUND_SECONDS
        while (self._following or not self._closing) and not self._gave_up:
            self._wake.wait(pause)
            self._wake.clear()
            pause = ROUND_SECONDS if self._round() else min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _round(self) -> bool:
        """Take every record a step further; False where the store fails."""
        for delivery in list(self._following):
            try:
                over = delivery.advance()
            except Exception as error:  # whatever it is, the record stays, and so does the sweep
                if self.trouble is None:
                    self.tell(f"MLflow takes nothing just now ({first_line(error)}); results wait on this disk")
                self.trouble = first_line(error)
                self._following.append(self._following.pop(self._following.index(delivery)))  # the next one's turn
                return False
            if over:
                self._following.remove(delivery)
            self._answers()
        if time.monotonic() - self._seen_at > SEEN_SECONDS:
            with suppress(Exception):
                self.store.seen(self.sweep_run_id)
                self._seen_at = time.monotonic()
        return True

    def _answers(self) -> None:
        if self.trouble is not None:
            self.tell("MLflow answers again")
        self.trouble = None

"""Bringing records to MLflow: beside the training, and as often as it takes."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ftmatrix.errors import first_line
from ftmatrix.records import Outcome
from ftmatrix.store.journal import Journal, RunFacts
from ftmatrix.store.ownership import SEEN_SECONDS
from ftmatrix.store.recording import RunWriter
from ftmatrix.store.tracking import Store

ROUND_SECONDS = 1.0
"""Between two rounds over all records; twice as long after each that failed."""
LONGEST_PAUSE_SECONDS = 20.0
HEARD_SECONDS = 10.0
"""Until a sign of life that wasn't heard is given again."""
STEPS_A_BATCH = 150
BATCH_SECONDS = 10.0
"""So many steps, or so long, wait for one another, so that a batch is worth its call."""


class Delivery:
    """Brings one record to its run. Interrupted anywhere and asked again, it goes on, and repeats nothing."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self.store, self.journal = store, journal
        self.calls = 0
        """How often MLflow has answered."""
        self.run_id: str | None = None
        """The run in MLflow, once there is one."""
        self._writer: RunWriter | None = None
        self._sent = 0
        self._sent_at = time.monotonic()

    @property
    def name(self) -> str:
        """The record's own name."""
        return self._facts.key

    @property
    def _facts(self) -> RunFacts:
        assert self.journal.facts is not None
        return self.journal.facts

    def open(self, *, starting: bool = False) -> RunWriter:
        """The run; made now if there is none yet. `starting`: it starts now, and not when its record was begun."""
        if self._writer is None:
            run_id = self.store.run_of(self._facts)
            if run_id is None:
                started_ms = int(time.time() * 1000) if starting else self._facts.started_ms
                run_id = self.store.begin(replace(self._facts, started_ms=started_ms))
            self.run_id = run_id
            writer = RunWriter(self.store.client, run_id)
            writer.open(self._facts)
            self._writer = writer
            self.calls += 1
        return self._writer

    def begin_again(self) -> None:
        """Forget the run, after a failure: it may have been deleted. All that the record holds is brought anew."""
        self._writer, self._sent = None, 0

    def take_back(self) -> None:
        """Remove the run: another process has the cell."""
        self.store.client.delete_run(self.open().run_id)
        self.journal.delivered(complete=False)
        self.journal.release()

    def advance(self) -> bool:
        """Bring what is new. True once the result is there and the run closed."""
        writer = self.open()
        timed = self.journal.look()  # before the steps, so that none comes after it
        steps = self.journal.steps(self._sent)
        late = time.monotonic() - self._sent_at > BATCH_SECONDS
        if steps and (timed is not None or late or len(steps) >= STEPS_A_BATCH):
            writer.steps(steps)
            self._sent += len(steps)
            self._sent_at = time.monotonic()
            self.calls += 1
        if timed is None:
            return False
        writer.finish(timed, self.journal.files)
        self.calls += 1
        self.journal.delivered(complete=timed.result.outcome is Outcome.COMPLETED)
        self.journal.release()
        return True


class Courier:
    """Follows records in a thread of its own until their runs are closed. `tell` hears of a store that fails."""

    def __init__(self, store: Store, sweep_run_id: str, tell: Callable[[str], None]) -> None:
        self.store, self.sweep_run_id, self.tell = store, sweep_run_id, tell
        self.away = False
        """Whether the store answered nothing when it was last asked."""
        self._refused: dict[str, str] = {}
        self._trouble_since = 0.0
        self._following: list[Delivery] = []
        self._wake = threading.Event()
        self._closing = False
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="courier", daemon=True)
        self._thread.start()
        threading.Thread(target=self._stay_alive, name="heartbeat", daemon=True).start()

    @property
    def trouble(self) -> str | None:
        """What the store said when it last failed; None while it takes everything."""
        return next(iter(self._refused.values()), None)

    def follow(self, delivery: Delivery) -> None:
        """Bring a record to its run from now on."""
        self._following.append(delivery)

    def hurry(self) -> None:
        """Begin the next round now: there is a result."""
        self._wake.set()

    def failed(self, error: Exception, of: str = "a question") -> None:
        """The store didn't answer, or refused something."""
        if not self._refused:
            self._trouble_since = time.monotonic()
            self.tell(f"MLflow takes nothing just now ({first_line(error)}); results wait on this disk")
        self._refused[of] = first_line(error)
        self.away = not self.store.answers()

    def _took(self, what: str) -> None:
        """The store answered."""
        self.away = False
        had = bool(self._refused)
        self._refused.pop("a question", None)
        self._refused.pop(what, None)
        if had and not self._refused:
            self.tell("MLflow answers again")

    def close(self, patience: float, at_most: float = math.inf) -> list[Delivery]:
        """Wait until all is delivered; give up once the store has failed for so many seconds. Returns what is left."""
        self._closing = True
        self._wake.set()
        until = time.monotonic() + at_most
        try:
            while self._thread.is_alive() and time.monotonic() < until:
                self._thread.join(0.2)
                if self.trouble is not None and time.monotonic() - self._trouble_since > patience:
                    break
        finally:
            self._gone.set()
            self._wake.set()
        self._thread.join(1)
        return list(self._following)

    def _follow(self) -> None:
        pause = ROUND_SECONDS
        while (self._following or not self._closing) and not self._gone.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            pause = ROUND_SECONDS if self._round() else min(2 * pause, LONGEST_PAUSE_SECONDS)
        for delivery in self._following:
            delivery.journal.release()

    def _round(self) -> bool:
        """Take every record a step further; False where the store fails."""
        well = True
        for delivery in list(self._following):
            calls = delivery.calls
            try:
                over = delivery.advance()
            except Exception as error:  # whatever it is, the record stays, and so does the sweep
                delivery.begin_again()
                self.failed(error, delivery.name)
                self._following.append(self._following.pop(self._following.index(delivery)))  # the next one's turn
                well = False
                if self.away:
                    break
                continue
            if over:
                self._following.remove(delivery)
            if delivery.calls > calls:
                self._took(delivery.name)
        return well

    def _stay_alive(self) -> None:
        """Say every minute that this process is there, whatever else takes long; sooner where the store didn't hear."""
        pause: float = SEEN_SECONDS
        while not self._gone.wait(pause):
            pause = SEEN_SECONDS
            for run_id in filter(None, [self.sweep_run_id, *(delivery.run_id for delivery in list(self._following))]):
                try:
                    self.store.say_alive(run_id)
                except Exception:  # away, or the run was deleted
                    pause = HEARD_SECONDS

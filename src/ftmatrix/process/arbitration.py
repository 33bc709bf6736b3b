"""Whose a cell is where several sweeps want it: this one's, another's, or nobody's, because its result is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ftmatrix.errors import first_line
from ftmatrix.records import Outcome
from ftmatrix.spec import ReadyCell
from ftmatrix.store import WEIGHTS_TAG, Courier, Delivery, Journal, RunFacts, Store, facts_of, is_alive, serves

if TYPE_CHECKING:
    from mlflow.entities import Run

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Ours:
    """It is for this sweep to run; its record is begun."""

    delivery: Delivery


@dataclass(frozen=True)
class Left:
    """A sweep that died has left its result on this disk; it only has to be delivered."""

    delivery: Delivery


@dataclass(frozen=True)
class Finished:
    """Another sweep has finished it since this one looked."""

    run_id: str


@dataclass(frozen=True)
class Busy:
    """Another sweep is at it."""


@dataclass(frozen=True)
class Unrecorded:
    """No record of it can be begun: the disk, one that can't be read, a store that doesn't take the one that waits."""

    delivery: Delivery
    reason: str


Claim = Ours | Left | Finished | Busy | Unrecorded


class Arbiter:
    """Claims cells for one sweep. Of two that begin at once each sees the other, and one gives way."""

    def __init__(self, store: Store, sweep_name: str, courier: Courier) -> None:
        self.store, self.sweep_name, self.courier = store, sweep_name, courier

    def claim(self, ready: ReadyCell) -> Claim:
        """Whose the cell is now."""
        facts = facts_of(ready, goal=self.store.goal, sweep=self.sweep_name)
        journal = None
        try:
            journal = Journal.claim(ready.folder)
            if journal is None:
                return Busy()
            return self._claimed(ready, journal, facts)
        except Exception as error:
            if journal is not None:
                journal.release()
            reason = f"{type(error).__name__} while starting: {first_line(error)}"
            return Unrecorded(Delivery(self.store, Journal.in_memory(facts)), reason)

    def _claimed(self, ready: ReadyCell, journal: Journal, facts: RunFacts) -> Claim:
        """Whose the cell is whose record on this disk is claimed."""
        if not journal.is_readable:  # what lies there may be the only copy of a result
            raise OSError(
                f"{journal.folder} holds a record that can't be read ({journal.trouble}); mend it, or move it away"
            )
        if (left := journal.result) and left.result.outcome is Outcome.COMPLETED:
            if _is_enough(journal, ready):
                return Left(Delivery(self.store, journal))
            Delivery(self.store, journal).advance()  # first: what begins now begins on an empty record
            return self.claim(ready)
        elsewhere = None if self.courier.away else self._asked(lambda: self._elsewhere(ready))
        if elsewhere is not None:
            journal.release()
            return Finished(elsewhere.info.run_id) if _takes(elsewhere, ready) else Busy()
        journal.begin(facts, keep=() if ready.cell.force else (ready.progress,))
        delivery = Delivery(self.store, journal)
        gives_way = not self.courier.away and self._asked(lambda: self._gives_way(ready, delivery))
        return Busy() if gives_way else Ours(delivery)

    def _elsewhere(self, ready: ReadyCell) -> "Run | None":
        """The run of another sweep that has finished the cell since this one began, or is at it."""
        runs = self.store.runs_of(ready.fingerprint)
        return next(iter([*(run for run in runs if _takes(run, ready)), *_alive(runs)]), None)

    def _gives_way(self, ready: ReadyCell, delivery: Delivery) -> bool:
        """Whether another sweep began the cell before: then this one's run is taken back.

        Asked once the run is there, so that of two that begin at once each sees the other.
        """
        own = delivery.open(starting=True).run_id
        runs = self.store.runs_of(ready.fingerprint)
        first = min(_alive(runs), key=lambda run: (run.info.start_time, run.info.run_id), default=None)
        finished = any(_takes(run, ready) for run in runs)
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


def _takes(run: "Run", ready: ReadyCell) -> bool:
    """Whether another sweep's result does for this cell."""
    return not ready.cell.force and serves(run, ready)


def _is_enough(journal: Journal, ready: ReadyCell) -> bool:
    """Whether the result that waits in a record has all that the cell asks for."""
    assert journal.facts is not None
    return not ready.cell.force and (not ready.cell.save_model or WEIGHTS_TAG in journal.facts.tags)


def _alive(runs: "Sequence[Run]") -> "list[Run]":
    """Those that a process, alive, is at."""
    return [run for run in runs if run.info.status == "RUNNING" and is_alive(run)]

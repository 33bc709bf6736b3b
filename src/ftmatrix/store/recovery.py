"""What earlier sweeps left behind: records that MLflow doesn't have yet, runs whose process is gone."""

from collections import Counter
from enum import Enum
from pathlib import Path

from ftmatrix.errors import first_line
from ftmatrix.records import CellResult, Outcome
from ftmatrix.store.delivery import Delivery
from ftmatrix.store.journal import Journal
from ftmatrix.store.ownership import is_alive
from ftmatrix.store.tracking import Store


class Found(Enum):
    """What may be found, in the words that tell of it."""

    LATE = "result(s) of an earlier sweep hadn't reached MLflow; delivered now"
    STOPPED = "cell(s) were running when an earlier sweep died; their runs are closed, they go on from what they saved"
    DEAD = "run(s) of dead processes were still open; closed"
    ELSEWHERE = "record(s) of other studies or stores wait here; a sweep of theirs delivers them"


def recover(store: Store, work_dir: Path) -> list[str]:
    """Deliver and close what can be; a line for each kind of thing that was found, and for each record that failed."""
    found: Counter[Found] = Counter()
    lines = []
    for path in sorted((work_dir / "cells").glob("*/run.json")):
        journal = Journal.claim(path.parent)
        if journal is None:  # another sweep's, at this moment
            continue
        if not journal.is_readable:
            lines.append(f"{path.parent}: its record can't be read; it stays there")
            journal.release()
            continue
        try:
            found[_settle(journal, store)] += 1
        except Exception as error:  # one bad record must cost neither the others nor this sweep
            lines.append(f"{path.parent}: its record can't be delivered ({first_line(error)}); it stays there")
        finally:
            journal.release()
    for run in store.open_runs():
        if not is_alive(run) and store.close_dead(run):
            found[Found.DEAD] += 1
    return [f"{count} {kind.value}" for kind, count in found.items()] + lines


def _settle(journal: Journal, store: Store) -> Found:
    assert journal.facts is not None
    if journal.facts.goal != store.goal:
        return Found.ELSEWHERE
    late = journal.look() is not None
    if not late:
        done = len(journal.steps())
        journal.end(CellResult(Outcome.INTERRUPTED, f"its sweep died after {done} steps", steps=done))
    Delivery(store, journal).advance()
    return Found.LATE if late else Found.STOPPED

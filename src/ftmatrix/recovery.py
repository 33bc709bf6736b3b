"""What earlier sweeps left behind: records that MLflow doesn't have yet, runs whose process is gone."""

from pathlib import Path

from ftmatrix.delivery import Delivery
from ftmatrix.journal import Journal
from ftmatrix.ownership import is_alive
from ftmatrix.records import CellResult, Outcome
from ftmatrix.tracking import Store


def recover(store: Store, work_dir: Path) -> list[str]:
    """Deliver and close what can be; a line for each kind of thing that was found."""
    late = stopped = elsewhere = 0
    for path in sorted((work_dir / "cells").glob("*/run.json")):
        journal = Journal.claim(path.parent)
        if journal is None or journal.facts is None:  # another sweep's, at this moment
            continue
        if journal.facts.goal != store.goal:
            elsewhere += 1
            journal.release()
            continue
        if journal.look() is None:
            done = len(journal.steps())
            journal.end(CellResult(Outcome.INTERRUPTED, f"its sweep died after {done} steps", steps=done))
            stopped += 1
        else:
            late += 1
        Delivery(store, journal).advance()
    dead = [run for run in store.going() if not is_alive(run)]
    for run in dead:
        store.bury(run)
    found = (
        (late, "result(s) of an earlier sweep hadn't reached MLflow; delivered now"),
        (
            stopped,
            "cell(s) were running when an earlier sweep died; their runs are closed, they go on from what they saved",
        ),
        (len(dead), "run(s) of dead processes were still open; closed"),
        (elsewhere, "record(s) of other studies or stores wait here; a sweep of theirs delivers them"),
    )
    return [f"{count} {said}" for count, said in found if count]

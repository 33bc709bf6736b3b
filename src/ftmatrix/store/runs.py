"""What MLflow knows of a run, as a row of a comparison."""

from typing import TYPE_CHECKING

from ftmatrix.records import Outcome, Row, Stability, Verdict
from ftmatrix.spec import ReadyCell
from ftmatrix.store.recording import NOTES_BETWEEN, TRIGGER_TAG, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run


FACTS = ("device", "precision", "threads", "model.revision", "data.digest", "version.", "memory.counts")
"""Beginnings of the tags that say on what, and with what, a cell ran."""


def is_complete(run: "Run") -> bool:
    """Whether a run's result is whole."""
    return run.data.tags.get("complete") == "true"


def serves(run: "Run", ready: ReadyCell) -> bool:
    """Whether a run of a cell has all that the cell asks for: a whole result, and weights where they are to be kept."""
    return is_complete(run) and (not ready.cell.save_model or WEIGHTS_TAG in run.data.tags)


def verdict_of(run: "Run") -> Stability | None:
    """The verdict on a run, as its tags have it."""
    if "stability" not in run.data.tags:
        return None
    series, _, at = run.data.tags.get(TRIGGER_TAG, "").partition("=")
    step = at.rpartition(" at step ")[2]
    return Stability(Verdict(run.data.tags["stability"]), int(step) if step.isdigit() else None, series or None)


def row_of(run: "Run") -> Row:
    """A run of a cell as a row, by its tags, parameters and metrics."""
    tags = run.data.tags
    return Row(
        run_id=run.info.run_id,
        method=tags["method"],
        model=tags["model"],
        data=tags["data"],
        lr=float(tags["lr"]),
        seed=int(tags["seed"]),
        outcome=Outcome(tags.get("outcome", Outcome.INTERRUPTED.value)),
        reason=tags.get("reason"),
        stability=tags.get("stability"),
        metrics=dict(run.data.metrics),
        settings=dict(run.data.params),
        facts={name: value for name, value in tags.items() if name.startswith(FACTS)},
        notes=tuple(filter(None, tags.get("notes", "").split(NOTES_BETWEEN))),
        keeps_weights=WEIGHTS_TAG in tags,
        artifact_uri=run.info.artifact_uri,
    )

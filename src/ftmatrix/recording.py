"""Writing runs to MLflow. Only the parent process does; metrics travel in batches."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftmatrix.config import Cell, flat, plain
from ftmatrix.metrics import STEP_SERIES, result_metrics
from ftmatrix.preparation import Prepared, ReadyCell, versions
from ftmatrix.records import CellResult, Outcome, Step

if TYPE_CHECKING:
    from mlflow import MlflowClient

WEIGHTS_TAG = "weights"
"""Set on a run that keeps its fine-tuned weights."""
METRICS_A_BATCH = 1000
"""The most that MLflow takes in one call."""
HELD_STEPS = 150
"""Steps that are held back for the next batch."""


@dataclass(frozen=True)
class SweepWriter:
    """Writes the sweep's own run."""

    client: "MlflowClient"
    run_id: str

    def text(self, name: str, text: str) -> None:
        """Keep a text as an artifact."""
        self.client.log_text(self.run_id, text, name)

    def describe(self, markdown: str) -> None:
        """What MLflow's user interface shows on top of the run's page; it takes 8,000 characters."""
        self.client.set_tag(
            self.run_id, "mlflow.note.content", markdown if len(markdown) < 8000 else "See comparison.txt."
        )


class RunWriter:
    """Writes the run of one cell."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._held: list[Step] = []

    def parameters(self, cell: Cell) -> None:
        """The resolved configuration as parameters, with the axes first."""
        from mlflow.entities import Param

        values = flat(plain(cell))
        for left_out in (
            "tracking.uri",
            "tracking.sweep",
            "work_dir",
            "force",
            "plan",
            "data.path",
            "model.path",
            "device_memory",
            "fit_check",
            "checkpoint_minutes",
        ):
            values.pop(left_out, None)
        values |= {"method": cell.method.name, "model": cell.model.title, "data": cell.data.title}
        self.client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in values.items()])

    def inputs(self, ready: ReadyCell) -> None:
        """The data set, as MLflow's input of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        splits = ("train", "validation", "test")
        sizes = {f"num_{split}": len(getattr(ready.dataset, split)) for split in splits}
        dataset = Dataset(
            name=ready.cell.data.title,
            digest=ready.dataset.digest[:12],
            source_type="code",
            source=ready.data_source,
            profile=json.dumps(sizes | {"num_intents": len(ready.dataset.labels)}),
        )
        self.client.log_inputs(
            self.run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        )

    def steps(self, steps: Sequence[Step]) -> None:
        """Keep steps for their curves; written when a batch is full, and at the end."""
        self._held += steps
        if len(self._held) >= HELD_STEPS:
            self._flush()

    def finish(self, result: CellResult, files: Path | None = None) -> None:
        """Write the result and the cell's files, and close the run. Only then does the cell count as complete."""
        self._flush()
        if files is not None and files.is_dir():
            self.client.log_artifacts(self.run_id, str(files))
        self._metrics(result_metrics(result), step=result.steps)
        self.client.set_tag(self.run_id, "outcome", result.outcome.value)
        if result.reason:
            self.client.set_tag(self.run_id, "reason", result.reason)
        if result.stability:
            self.client.set_tag(self.run_id, "stability", result.stability.verdict.value)
            if result.stability.series:
                at = "the end" if result.stability.step is None else f"step {result.stability.step}"
                trigger = f"{result.stability.series}={result.stability.value:g} at {at}"
                self.client.set_tag(self.run_id, "stability.trigger", trigger)
        if result.peaks:
            self.client.set_tag(self.run_id, "memory.counts", result.peaks[-1].counts)
        if result.notes:
            self.client.set_tag(self.run_id, "notes", "; ".join(result.notes))
        completed = result.outcome is Outcome.COMPLETED
        if completed:
            self.client.set_tag(self.run_id, "complete", "true")
        self.client.set_terminated(self.run_id, "FINISHED" if completed else "FAILED")

    def abandon(self, reason: str) -> None:
        """Close the run of a cell that was stopped before it could end."""
        self._flush()
        self.client.set_tag(self.run_id, "outcome", Outcome.INTERRUPTED.value)
        self.client.set_tag(self.run_id, "reason", reason)
        self.client.set_terminated(self.run_id, "KILLED")

    def _flush(self) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(f"step/{series}", _storable(getattr(step, series)), now, step.index)
            for step in self._held
            for series in STEP_SERIES
        ]
        self._held = []
        for start in range(0, len(metrics), METRICS_A_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_A_BATCH])

    def _metrics(self, values: dict[str, float], *, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id, metrics=[Metric(name, _storable(value), now, step) for name, value in values.items()]
        )


def tags_of(prepared: Prepared, sweep: str) -> dict[str, str]:
    """What a cell's run can be found and filtered by."""
    cell = prepared.cell
    tags = {
        "mlflow.source.name": "ftmatrix",
        "kind": "cell",
        "sweep": sweep,
        "method": cell.method.name,
        "model": cell.model.title,
        "data": cell.data.title,
        "lr": f"{cell.lr:g}",
        "seed": str(cell.seed),
    }
    if cell.save_model:
        tags[WEIGHTS_TAG] = "model"
    if isinstance(prepared, ReadyCell):
        tags |= {
            "fingerprint": prepared.fingerprint,
            "model.revision": prepared.checkpoint.revision,
            "data.digest": prepared.dataset.digest,
            "device": prepared.accelerator.name,
            "precision": prepared.precision.value,
        }
        tags |= {f"version.{name}": version for name, version in versions(cell.method).items()}
    return tags


def _storable(value: float) -> float:
    """Infinity as NaN, because MLflow stores it as 1.8e308, which reads like a number."""
    return value if math.isfinite(value) else math.nan

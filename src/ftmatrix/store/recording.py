"""Runs in MLflow: what they are made of, and writing them. Every call may be repeated; nothing is written twice."""

import json
import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftmatrix.cell import STEP_SERIES, result_metrics
from ftmatrix.records import Outcome
from ftmatrix.roles import flat, plain
from ftmatrix.spec import Cell, Prepared, ReadyCell, unrecorded, versions
from ftmatrix.store.journal import DataFacts, RunFacts, TimedResult, TimedStep
from ftmatrix.store.ownership import OWNER_TAG, own_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

TRIGGER_TAG = "stability.trigger"
NOTES_BETWEEN = "; "
"""Parts the notes of a run in its tag."""
WEIGHTS_TAG = "weights"
"""Set on a run that keeps its fine-tuned weights."""
KEY_TAG = "record"
"""By which a record finds the run that it began."""
MOST_OF_A_NOTE = 8000
"""Characters that MLflow takes."""
METRICS_A_BATCH = 1000
"""The most that MLflow takes in one call."""


@dataclass(frozen=True)
class SweepWriter:
    """Writes the sweep's own run."""

    client: "MlflowClient"
    run_id: str

    def text(self, name: str, text: str) -> None:
        """Keep a text as an artifact."""
        self.client.log_text(self.run_id, text, name)

    def files(self, paths: Sequence[Path], folder: str) -> None:
        """Keep files as artifacts, in a folder of this name."""
        for path in paths:
            self.client.log_artifact(self.run_id, str(path), folder)

    def describe(self, whole: str, short: str) -> None:
        """What MLflow's user interface shows on top of the run's page, in Markdown: the whole where it is taken."""
        note = whole if len(whole) <= MOST_OF_A_NOTE else short[:MOST_OF_A_NOTE]
        self.client.set_tag(self.run_id, "mlflow.note.content", note)


@dataclass(frozen=True)
class RunWriter:
    """Writes the run of one cell."""

    client: "MlflowClient"
    run_id: str

    def open(self, facts: RunFacts) -> None:
        """Parameters and data set, known before the cell starts."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in facts.parameters.items()])
        if facts.data is not None:
            data = facts.data
            dataset = Dataset(data.name, data.digest, "code", data.source, profile=data.profile)
            tags = [InputTag("mlflow.data.context", "training")]
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def steps(self, steps: Sequence[TimedStep]) -> None:
        """Points of the curves."""
        from mlflow.entities import Metric

        self._log(
            Metric(f"step/{series}", _storable(getattr(timed.step, series)), timed.at_ms, timed.step.index)
            for timed in steps
            for series in STEP_SERIES
        )

    def finish(self, timed: TimedResult, files: Path | None = None) -> None:
        """Write the result and the cell's files, and close the run. Only then does the cell count as complete."""
        from mlflow.entities import Metric, RunTag

        result = timed.result
        if files is not None and files.is_dir():
            self.client.log_artifacts(self.run_id, str(files))
        self._log(
            Metric(name, _storable(value), timed.at_ms, result.steps) for name, value in result_metrics(result).items()
        )
        tags = {"outcome": result.outcome.value}
        if result.reason:
            tags["reason"] = result.reason
        if result.stability:
            tags["stability"] = result.stability.verdict.value
            if result.stability.series:
                at = "the end" if result.stability.step is None else f"step {result.stability.step}"
                tags[TRIGGER_TAG] = f"{result.stability.series}={result.stability.value:g} at {at}"
        if result.peaks:
            tags["memory.counts"] = result.peaks[-1].counts
        if result.notes:
            tags["notes"] = NOTES_BETWEEN.join(result.notes)
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        if result.outcome is Outcome.COMPLETED:
            self.client.set_tag(self.run_id, "complete", "true")
        status = {Outcome.COMPLETED: "FINISHED", Outcome.INTERRUPTED: "KILLED"}.get(result.outcome, "FAILED")
        self.client.set_terminated(self.run_id, status, end_time=timed.at_ms)

    def _log(self, metrics: "Iterable[Metric]") -> None:
        points = list(metrics)
        for start in range(0, len(points), METRICS_A_BATCH):
            self.client.log_batch(self.run_id, metrics=points[start : start + METRICS_A_BATCH])


def facts_of(prepared: Prepared, *, goal: str, sweep: str) -> RunFacts:
    """What is known of a cell's run before it starts."""
    key = uuid.uuid4().hex
    return RunFacts(
        key=key,
        goal=goal,
        name=prepared.cell.title,
        started_ms=int(time.time() * 1000),
        tags=tags_of(prepared, sweep) | {KEY_TAG: key, OWNER_TAG: own_name()},
        parameters=parameters_of(prepared.cell),
        data=data_of(prepared) if isinstance(prepared, ReadyCell) else None,
    )


def parameters_of(cell: Cell) -> dict[str, str]:
    """The resolved configuration as parameters."""
    values = {key: value for key, value in flat(plain(cell)).items() if key not in unrecorded()}
    values |= {"method": cell.method.name, "model": cell.model.title, "data": cell.data.title}
    return {key: str(value) for key, value in values.items()}


def data_of(ready: ReadyCell) -> DataFacts:
    """The data set, as MLflow's input of the run."""
    sizes = {f"num_{split}": len(getattr(ready.dataset, split)) for split in ("train", "validation", "test")}
    profile = json.dumps(sizes | {"num_intents": len(ready.dataset.labels)})
    return DataFacts(ready.cell.data.title, ready.dataset.digest[:12], ready.data_source, profile)


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
            "device": prepared.device,
            "precision": prepared.precision.value,
            "threads": str(prepared.threads),
        }
        tags |= {f"version.{name}": version for name, version in versions(cell.method).items()}
    return tags


def _storable(value: float) -> float:
    """Infinity as NaN, because MLflow stores it as 1.8e308, which reads like a number."""
    return value if math.isfinite(value) else math.nan

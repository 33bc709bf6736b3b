"""MLflow: one experiment a study, one flat run a cell, one run for each sweep.

Only the parent process writes here; children leave files and send events. Metrics travel in batches.
"""

import logging
import math
import os
import time
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftmatrix.config import Cell, flat, plain
from ftmatrix.errors import ConfigError, first_line, nearest
from ftmatrix.metrics import STEP_SERIES, result_metrics
from ftmatrix.preparation import Prepared, ReadyCell
from ftmatrix.records import CellResult, Outcome, Step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
COMPLETE = "tags.kind = 'cell' AND tags.complete = 'true'"
"""The runs whose result is whole."""
WEIGHTS_TAG = "weights"
"""Set on a run that keeps its fine-tuned weights."""
METRICS_A_BATCH = 1000
"""The most that MLflow takes in one call."""
HELD_STEPS = 150
"""Steps that are held back for the next batch."""


def tracking_uri(configured: str | None) -> str:
    """The store to use: as configured, else MLFLOW_TRACKING_URI, else a SQLite file in the working directory."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _check_reachable(uri: str, *, create: bool) -> None:
    """Ask a store whether it is there before MLflow does, which would try for minutes.

    Raises:
        ConfigError: a server doesn't answer, or a file that shouldn't be created isn't there.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
        except OSError as error:
            raise ConfigError(
                f"tracking.uri={uri}: no MLflow server answers there ({first_line(error)}); start it, or take another"
            ) from error
    elif uri.startswith("sqlite:///") and not create and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"{uri}: no store there yet; run a sweep first, or name the store with MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class Row:
    """A cell as the store knows it: what a comparison table is made of. Metrics and settings are named as in MLflow."""

    run_id: str
    method: str
    model: str
    data: str
    lr: float
    seed: int
    outcome: Outcome
    reason: str | None
    stability: str | None
    metrics: dict[str, float]
    settings: dict[str, str]

    def metric(self, name: str) -> float | None:
        """A metric, or None where the cell never came to it."""
        return self.metrics.get(name)


class Store:
    """One MLflow experiment. The database is created here, in the parent, before any cell starts.

    Raises:
        ConfigError: with `create=False`, where the study has never been run.
    """

    def __init__(self, uri: str, study: str, *, create: bool = True) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="mlflow")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.uri, self.study = uri, study
        _check_reachable(uri, create=create)
        try:
            self.client: MlflowClient = MlflowClient(tracking_uri=uri)
            experiment = self.client.get_experiment_by_name(study)
            if experiment is None and not create:
                known = [other.name for other in self.client.search_experiments()]
                raise ConfigError(f"{study}: no such study in {uri}; {nearest(study, known)}")
            self.experiment_id = experiment.experiment_id if experiment else self._create()
        except MlflowException as error:
            raise ConfigError(f"tracking.uri={uri}: MLflow can't use it ({first_line(error)})") from error

    def _create(self) -> str:
        return self.client.create_experiment(self.study, artifact_location=self._artifacts())

    def _artifacts(self) -> str | None:
        """Beside a SQLite file, wherever the command is typed; elsewhere the server decides."""
        if not self.uri.startswith("sqlite:///"):
            return None
        folder = Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts" / self.study
        return folder.as_uri()

    def finished(self, cells: Iterable[ReadyCell]) -> dict[str, str]:
        """Run ids of complete cells, by fingerprint; the newest where a cell was run again.

        A cell that asks for its weights is complete only with them.
        """
        weights_wanted = {ready.fingerprint: ready.cell.save_model for ready in cells}
        found: dict[str, str] = {}
        for run in self._search(COMPLETE):
            fingerprint = run.data.tags["fingerprint"]
            if fingerprint in weights_wanted and (not weights_wanted[fingerprint] or WEIGHTS_TAG in run.data.tags):
                found.setdefault(fingerprint, run.info.run_id)
        return found

    def complete(self) -> list[Row]:
        """Every complete cell of the study."""
        newest: dict[str, Run] = {}
        for run in self._search(COMPLETE):
            newest.setdefault(run.data.tags["fingerprint"], run)
        return [_row(run) for run in newest.values()]

    def rows(self, run_ids: Sequence[str]) -> list[Row]:
        """The cells of these runs, in order."""
        return [_row(self.client.get_run(run_id)) for run_id in run_ids]

    def start(self, prepared: Prepared, sweep: str) -> "RunWriter":
        """Open the run of a cell."""
        cell = prepared.cell
        run = self.client.create_run(self.experiment_id, run_name=cell.title, tags=_tags(prepared, sweep))
        writer = RunWriter(self.client, run.info.run_id)
        try:
            writer.parameters(cell)
            if isinstance(prepared, ReadyCell):
                writer.inputs(prepared)
        except BaseException:
            writer.abandon("it could not be started")
            raise
        return writer

    @contextmanager
    def sweep(self, name: str, cells: int) -> Iterator["SweepWriter"]:
        """The run of the sweep itself, closed on the way out."""
        tags = {"mlflow.source.name": "ftmatrix", "kind": "sweep", "sweep": name, "cells": str(cells)}
        run = self.client.create_run(self.experiment_id, run_name=f"sweep {name}", tags=tags)
        try:
            yield SweepWriter(self.client, run.info.run_id)
        except BaseException:
            self.client.set_terminated(run.info.run_id, "KILLED")
            raise
        self.client.set_terminated(run.info.run_id, "FINISHED")

    def _search(self, query: str) -> "Iterator[Run]":
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], query, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


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
        for left_out in ("tracking.uri", "tracking.sweep", "work_dir", "force", "plan", "data.path", "model.path"):
            values.pop(left_out, None)
        values |= {"method": cell.method.name, "model": cell.model.title, "data": cell.data.title}
        self.client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in values.items()])

    def inputs(self, ready: ReadyCell) -> None:
        """The data set, as MLflow's input of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = ready.dataset.source if ready.cell.data.path is None else ready.cell.data.title
        dataset = Dataset(
            name=ready.cell.data.title,
            digest=ready.dataset.digest[:12],
            source_type="code",
            source=source,
            profile=f'{{"num_train": {len(ready.dataset.train)}, "num_validation": {len(ready.dataset.validation)}, '
            f'"num_test": {len(ready.dataset.test)}, "num_intents": {len(ready.dataset.labels)}}}',
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


def _tags(prepared: Prepared, sweep: str) -> dict[str, str]:
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
    return tags


def _row(run: "Run") -> Row:
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
    )


def _storable(value: float) -> float:
    """Infinity as NaN, because MLflow stores it as 1.8e308, which reads like a number."""
    return value if math.isfinite(value) else math.nan

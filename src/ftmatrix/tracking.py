"""The MLflow store: one experiment a study, one flat run a cell, one run for each sweep; and cells as rows."""

import logging
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ftmatrix.errors import ConfigError, first_line, nearest
from ftmatrix.preparation import Prepared, ReadyCell
from ftmatrix.recording import WEIGHTS_TAG, RunWriter, SweepWriter, tags_of
from ftmatrix.records import CellResult, Outcome, from_json

if TYPE_CHECKING:
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
FACTS = ("device", "precision", "model.revision", "data.digest", "version.")
"""Beginnings of the tags that say on what, and with what, a cell ran."""
COMPLETE = "tags.kind = 'cell' AND tags.complete = 'true'"
"""The runs whose result is whole."""


def tracking_uri(configured: str | None) -> str:
    """The store to use: as configured, else MLFLOW_TRACKING_URI, else a SQLite file in the working directory."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other kind."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _check_reachable(uri: str, *, create: bool) -> None:
    """Ask a store whether it is there before MLflow does, which would try for minutes.

    Raises:
        ConfigError: a server doesn't answer, or a file that shouldn't be created isn't there.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
        except urllib.error.HTTPError:
            pass  # something answers, if not as MLflow's own server does: let MLflow judge
        except OSError as error:
            raise ConfigError(
                f"tracking.uri={uri}: no MLflow server answers there ({first_line(error)}); start it, or take another"
            ) from error
    elif (file := _sqlite_file(uri)) and not create and not file.exists():
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
    facts: dict[str, str] = field(default_factory=dict)
    """What the settings came to: device, precision, model commit, data digest, versions."""

    @property
    def completed(self) -> bool:
        """Whether the cell has a result."""
        return self.outcome is Outcome.COMPLETED

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
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
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
        file = _sqlite_file(self.uri)
        return (file.absolute().parent / "mlartifacts" / self.study).as_uri() if file else None

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

    def cells(self) -> list[Row]:
        """Every cell of the study by its newest result; one that has none, by its newest failure.

        Runs of the same settings are one cell, whatever data, versions or machine they ran on: what a comparison may
        count once only. Where those differ between cells, the report says so.
        """
        newest: dict[frozenset[tuple[str, str]], Row] = {}
        for run in self._search("tags.kind = 'cell' AND attributes.status != 'RUNNING'"):
            row = _row(run)
            cell = frozenset(row.settings.items())
            if cell not in newest or (row.completed and not newest[cell].completed):
                newest[cell] = row
        return list(newest.values())

    def rows(self, run_ids: Sequence[str]) -> list[Row]:
        """The cells of these runs, in order."""
        return [_row(self.client.get_run(run_id)) for run_id in run_ids]

    def result(self, row: Row) -> CellResult:
        """The whole result behind a row, with its answers and its confusion matrix."""
        with TemporaryDirectory() as folder:
            path = self.client.download_artifacts(row.run_id, "result.json", folder)
            return from_json(CellResult, Path(path).read_text(encoding="utf-8"))

    def start(self, prepared: Prepared, sweep: str) -> RunWriter:
        """Open the run of a cell."""
        cell = prepared.cell
        run = self.client.create_run(self.experiment_id, run_name=cell.title, tags=tags_of(prepared, sweep))
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
    def sweep(self, name: str, cells: int) -> Iterator[SweepWriter]:
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
        facts={name: value for name, value in tags.items() if name.startswith(FACTS)},
    )

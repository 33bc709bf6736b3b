"""The MLflow store: one experiment a study, one flat run a cell, one run for each sweep; and cells as rows."""

import gc
import logging
import os
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock

from ftmatrix.config import goal_of, uncompared, without_credentials
from ftmatrix.errors import ConfigError, first_line, nearest
from ftmatrix.journal import RunFacts, TimedResult
from ftmatrix.ownership import OWNER_TAG, SEEN_TAG, own_name
from ftmatrix.preparation import ReadyCell
from ftmatrix.recording import KEY_TAG, NOTES_BETWEEN, TRIGGER_TAG, WEIGHTS_TAG, RunWriter, SweepWriter
from ftmatrix.records.measures import Stability, Step
from ftmatrix.records.outcomes import Outcome, Verdict
from ftmatrix.records.results import CellResult
from ftmatrix.records.rows import Row
from ftmatrix.records.storing import from_json
from ftmatrix.settings import Training
from ftmatrix.stability import judged_anew, may_be_outdated

if TYPE_CHECKING:
    from mlflow.entities import Run


FACTS = ("device", "precision", "threads", "model.revision", "data.digest", "version.", "memory.counts")
"""Beginnings of the tags that say on what, and with what, a cell ran."""
COMPLETE = "tags.kind = 'cell' AND tags.complete = 'true'"
"""The runs whose result is whole."""
ASKED_ONE_BY_ONE = 50
"""Up to so many cells it is quicker to search for each than to read a large store."""
ALONE_SECONDS = 60
"""How long another sweep may take to make a SQLite store."""


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other kind."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def _alone_at(file: Path | None) -> Iterator[None]:
    """Have a SQLite store to oneself: MLflow makes a new one in many steps, and two sweeps may begin at once."""
    with ExitStack() as held:
        if file is not None:
            with suppress(OSError):  # nothing may be written there, or nobody lets go: MLflow says it better
                file.parent.mkdir(parents=True, exist_ok=True)  # as MLflow would
                held.enter_context(FileLock(file.with_name(f".{file.name}.lock"), timeout=ALONE_SECONDS))
        yield


def check_reachable(uri: str, *, create: bool) -> None:
    """Ask a store whether it is there before MLflow does, which would try for minutes.

    Raises:
        ConfigError: a server doesn't answer, or a file that shouldn't be created isn't there.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{without_credentials(uri).rstrip('/')}/health", timeout=10).close()
        except urllib.error.HTTPError:
            pass  # something answers, if not as MLflow's own server does: let MLflow judge
        except OSError as error:
            raise ConfigError(
                f"tracking.uri={without_credentials(uri)}: no MLflow server answers there ({first_line(error)}); "
                "start it, or take another"
            ) from error
    elif (file := _sqlite_file(uri)) and not create and not file.exists():
        raise ConfigError(f"{uri}: no store there yet; run a sweep first, or name the store with MLFLOW_TRACKING_URI")


class Store:
    """One MLflow experiment. The database is created here, in the parent, before any cell starts.

    Raises:
        ConfigError: with `create=False`, where the study has never been run.
    """

    def __init__(self, uri: str, study: str, *, create: bool = True) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print the URI's password too
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # records are delivered again anyway
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module="mlflow")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.uri, self.study = uri, study
        self.shown, self.goal = without_credentials(uri), goal_of(uri, study)
        check_reachable(uri, create=create)
        try:
            with _alone_at(_sqlite_file(uri)):
                self.client: MlflowClient = MlflowClient(tracking_uri=uri)
                self.experiment_id = self._experiment(create)
        except MlflowException as error:
            raise ConfigError(f"tracking.uri={self.shown}: MLflow can't use it ({first_line(error)})") from error

    def _experiment(self, create: bool) -> str:
        """The study's id."""
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(self.study)
        if experiment is None and not create:
            known = [other.name for other in self.client.search_experiments()]
            raise ConfigError(f"{self.study}: no such study in {self.shown}; {nearest(self.study, known)}")
        if experiment is None:
            try:
                return self.client.create_experiment(self.study, artifact_location=self._artifacts())
            except MlflowException:
                experiment = self.client.get_experiment_by_name(self.study)
                if experiment is None:  # it isn't that another sweep was quicker
                    raise
        return str(experiment.experiment_id)

    def _artifacts(self) -> str | None:
        """Beside a SQLite file, wherever the command is typed; elsewhere the server decides."""
        file = _sqlite_file(self.uri)
        return (file.absolute().parent / "mlartifacts" / self.study).as_uri() if file else None

    def finished(self, cells: Iterable[ReadyCell]) -> dict[str, str]:
        """Run ids of complete cells, by fingerprint; the newest where a cell was run again.

        A cell that asks for its weights is complete only with them.
        """
        wanted = {ready.fingerprint: ready for ready in cells}
        found: dict[str, str] = {}
        queries = [f"{COMPLETE} AND tags.fingerprint = '{fingerprint}'" for fingerprint in wanted]
        for run in chain(*map(self._search, queries if len(queries) <= ASKED_ONE_BY_ONE else [COMPLETE])):
            fingerprint = run.data.tags["fingerprint"]
            if fingerprint in wanted and serves(run, wanted[fingerprint]):
                found.setdefault(fingerprint, run.info.run_id)
        return found

    def newest(self, count: int) -> list[Row]:
        """The latest complete runs, at most so many."""
        return [self._row(run) for run in islice(self._search(COMPLETE), count)]

    def cells(self) -> list[Row]:
        """Every cell of the study by its newest result, with weights if it has one; else by its newest failure.

        Runs of the same settings are one cell, whatever data, versions or machine they ran on, and whether or not they
        keep their weights: what a comparison may count once only. Where those differ, the report says so.
        """
        newest: dict[frozenset[tuple[str, str]], Row] = {}
        with _without_collecting():
            rows = [self._row(run) for run in self._search("tags.kind = 'cell' AND attributes.status != 'RUNNING'")]
        for row in rows:
            cell = row.deciding(but=uncompared())
            before = newest.get(cell)
            if before is None or (row.completed, row.keeps_weights) > (before.completed, before.keeps_weights):
                newest[cell] = row
        return list(newest.values())

    def rows(self, run_ids: Sequence[str]) -> list[Row]:
        """The cells of these runs, in order."""
        return [self._row(self.client.get_run(run_id)) for run_id in run_ids]

    def _row(self, run: "Run") -> Row:
        """A run as a row. One whose verdict may be one of older rules is judged anew."""
        row = _row(run)
        if (given := _verdict(run)) and may_be_outdated(given, epoch_steps=row.epoch_steps):
            with suppress(Exception):  # where its files are gone, the old verdict is all there is
                found = self.whole_result(row).stability
                return replace(row, stability=found.verdict.value if found else None)
        return row

    def result(self, row: Row) -> CellResult:
        """What there is of the result behind a row: without answers where its files are gone, as a warning says."""
        try:
            return self.whole_result(row)
        except ConfigError as gone:
            print(f"{gone}: no answers and no confusions of this cell", file=sys.stderr)
            return CellResult(row.outcome, row.reason)

    def whole_result(self, row: Row) -> CellResult:
        """The result behind a row, with its answers and its confusion matrix; an old verdict judged anew.

        Raises:
            ConfigError: its files are gone: the store was copied without them, or nobody can reach them.
        """
        stored = self._stored(row)
        if stored.stability is None or not may_be_outdated(stored.stability, epoch_steps=row.epoch_steps):
            return stored
        series = [[value for _, value in self.curve(row, name)] for name in ("loss", "grad_norm", "label_tokens")]
        if len({len(values) for values in series}) > 1:
            return stored  # not all of its steps were kept
        steps = [
            Step(index, row.lr, loss, norm, 0, int(tokens), 0.0)
            for index, (loss, norm, tokens) in enumerate(zip(*series, strict=True))
        ]
        training = Training(
            batch_size=int(row.settings["training.batch_size"]),
            warmup_fraction=float(row.settings["training.warmup_fraction"]),
        )
        warmup = training.warmup_steps(len(steps))
        return judged_anew(stored, steps, warmup_steps=warmup, batch_size=training.batch_size)

    def _stored(self, row: Row) -> CellResult:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
        from mlflow.utils.uri import append_to_uri_path

        place = append_to_uri_path(row.artifact_uri, "result.json")
        with TemporaryDirectory() as folder:  # by its address: by its run's id MLflow would read the run again
            try:
                path = download_artifacts(place, dst_path=folder, tracking_uri=self.uri)
            except (MlflowException, OSError) as error:
                raise ConfigError(f"run {row.run_id}: {place} isn't there") from error
            return from_json(CellResult, Path(path).read_text(encoding="utf-8"))

    def curve(self, row: Row, series: str) -> list[tuple[int, float]]:
        """A run's steps, in order, with the value of a series at each (see `STEP_SERIES`)."""
        points = self.client.get_metric_history(row.run_id, f"step/{series}")
        return sorted((point.step, point.value) for point in points)

    def begin(self, facts: RunFacts) -> str:
        """Open the run of a cell.

        MLflow asks again where an answer got lost, and may have made a run each time: one of them stays.
        """
        made = self.client.create_run(
            self.experiment_id, start_time=facts.started_ms, tags=facts.tags, run_name=facts.name
        )
        first, *twins = sorted({made.info.run_id, *(run.info.run_id for run in self._of_record(facts))})
        for twin in twins:
            self.client.delete_run(twin)
        return str(first)

    def run_of(self, facts: RunFacts) -> str | None:
        """The run that was opened with these facts, if there is one and nobody has deleted it."""
        run = next(self._of_record(facts), None)
        if run is None:
            return None
        self.client.set_tag(run.info.run_id, OWNER_TAG, own_name())
        if "reason" in run.data.tags:  # somebody took its process for dead
            self.client.delete_tag(run.info.run_id, "reason")
        return str(run.info.run_id)

    def _of_record(self, facts: RunFacts) -> "Iterator[Run]":
        return self._search(f"tags.{KEY_TAG} = '{facts.key}'")

    def record(self, facts: RunFacts, result: CellResult) -> str:
        """The run of a cell that never started."""
        writer = RunWriter(self.client, self.begin(facts))
        writer.open(facts)
        writer.finish(TimedResult(int(time.time() * 1000), facts.key, result))
        return writer.run_id

    def answers(self) -> bool:
        """Whether the store answers a small question."""
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:
            return False
        return True

    def going(self) -> "list[Run]":
        """Runs of cells and sweeps that nobody has closed."""
        running = "attributes.status = 'RUNNING' AND tags.kind = "
        return [run for kind in ("cell", "sweep") for run in self._search(f"{running}'{kind}'")]

    def runs_of(self, fingerprint: str) -> "list[Run]":
        """Every run of a cell, the newest first."""
        return list(self._search(f"tags.fingerprint = '{fingerprint}'"))

    def seen(self, run_id: str) -> None:
        """Say that the process behind a run is alive."""
        self.client.set_tag(run_id, SEEN_TAG, str(int(time.time() * 1000)))

    def bury(self, run: "Run") -> bool:
        """Close the run of a process that is gone, unless another has taken it up by now. Whether it did."""
        now = self.client.get_run(run.info.run_id)
        if now.info.status != "RUNNING" or now.data.tags.get(OWNER_TAG) != run.data.tags.get(OWNER_TAG):
            return False
        if is_complete(now):  # it died between the last two words
            self.client.set_terminated(run.info.run_id, "FINISHED")
            return True
        self.client.set_tag(run.info.run_id, "outcome", Outcome.INTERRUPTED.value)
        self.client.set_tag(run.info.run_id, "reason", "the process that ran it is gone")
        self.client.set_terminated(run.info.run_id, "KILLED")
        return True

    @contextmanager
    def sweep(self, name: str, cells: int) -> Iterator[SweepWriter]:
        """The run of the sweep itself, closed on the way out."""
        tags = {"mlflow.source.name": "ftmatrix", "kind": "sweep", "sweep": name, "cells": str(cells)}
        tags[OWNER_TAG] = own_name()
        run = self.client.create_run(self.experiment_id, run_name=f"sweep {name}", tags=tags)
        try:
            yield SweepWriter(self.client, run.info.run_id)
        except BaseException:
            with suppress(Exception):  # where the store is away too, the next sweep closes it
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


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Leave garbage for later: while many objects are made that all stay, looking for it takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_complete(run: "Run") -> bool:
    """Whether a run's result is whole."""
    return run.data.tags.get("complete") == "true"


def serves(run: "Run", ready: ReadyCell) -> bool:
    """Whether a run of a cell has all that the cell asks for: a whole result, and weights where they are to be kept."""
    return is_complete(run) and (not ready.cell.save_model or WEIGHTS_TAG in run.data.tags)


def _verdict(run: "Run") -> Stability | None:
    """The verdict on a run, as its tags have it."""
    if "stability" not in run.data.tags:
        return None
    series, _, at = run.data.tags.get(TRIGGER_TAG, "").partition("=")
    step = at.rpartition(" at step ")[2]
    return Stability(Verdict(run.data.tags["stability"]), int(step) if step.isdigit() else None, series or None)


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
        notes=tuple(filter(None, tags.get("notes", "").split(NOTES_BETWEEN))),
        keeps_weights=WEIGHTS_TAG in tags,
        artifact_uri=run.info.artifact_uri,
    )

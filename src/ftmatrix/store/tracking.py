"""The MLflow store: one experiment a study, one flat run a cell, one run for each sweep; and cells as rows."""

import gc
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from ftmatrix.cell import may_be_outdated
from ftmatrix.errors import ConfigError, first_line, nearest
from ftmatrix.records import CellResult, Outcome, Row
from ftmatrix.spec import ReadyCell, goal_of, uncompared, without_credentials
from ftmatrix.store.journal import RunFacts, TimedResult
from ftmatrix.store.ownership import OWNER_TAG, SEEN_TAG, own_name
from ftmatrix.store.reach import alone_at, check_reachable, quieten_mlflow, sqlite_file
from ftmatrix.store.recording import KEY_TAG, RunWriter, SweepWriter
from ftmatrix.store.results import judged_by_present_rules, read_result
from ftmatrix.store.runs import is_complete, row_of, serves, verdict_of

if TYPE_CHECKING:
    from mlflow.entities import Run


COMPLETE = "tags.kind = 'cell' AND tags.complete = 'true'"
"""The runs whose result is whole."""
ASKED_ONE_BY_ONE = 50
"""Up to so many cells it is quicker to search for each than to read a large store."""


class Store:
    """One MLflow experiment. The database is created here, in the parent, before any cell starts.

    Raises:
        ConfigError: with `create=False`, where the study has never been run.
    """

    def __init__(self, uri: str, study: str, *, create: bool = True) -> None:
        quieten_mlflow()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.uri, self.study = uri, study
        self.shown, self.goal = without_credentials(uri), goal_of(uri, study)
        check_reachable(uri, create=create)
        try:
            with alone_at(sqlite_file(uri)):
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
        file = sqlite_file(self.uri)
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
        row = row_of(run)
        if (given := verdict_of(run)) and may_be_outdated(given, epoch_steps=row.epoch_steps):
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
        stored = read_result(row, self.uri)
        return judged_by_present_rules(stored, row, lambda series: [value for _, value in self.curve(row, series)])

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

    def open_runs(self) -> "list[Run]":
        """Runs of cells and sweeps that nobody has closed."""
        running = "attributes.status = 'RUNNING' AND tags.kind = "
        return [run for kind in ("cell", "sweep") for run in self._search(f"{running}'{kind}'")]

    def runs_of(self, fingerprint: str) -> "list[Run]":
        """Every run of a cell, the newest first."""
        return list(self._search(f"tags.fingerprint = '{fingerprint}'"))

    def say_alive(self, run_id: str) -> None:
        """Say that the process behind a run is alive."""
        self.client.set_tag(run_id, SEEN_TAG, str(int(time.time() * 1000)))

    def close_dead(self, run: "Run") -> bool:
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

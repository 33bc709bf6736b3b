"""Engines: real Ray, submitit and joblib on this machine, each of which loses a worker in mid-sweep."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from ftmatrix.cli import run
from ftmatrix.errors import ConfigError
from ftmatrix.process import ATTEMPTS, Lost, run_jobs
from ftmatrix.process.engines.base import need
from ftmatrix.records import CellResult, Outcome
from ftmatrix.spec import Cell, FailedCell, ReadyCell, prepare
from ftmatrix.sweep.running import _as_job

WORKERS = {"ray": "ray::", "submitit_local": "submitit.core._submit", "joblib": "loky"}
"""By what the command line of an engine's worker is known."""
GRID = ("method=full,lora,qlora", "lr=1e-3,2e-3", "seed=0,1", "training.epochs=4", "report=false")
CELLS = 12
PATIENCE = 900
"""Seconds that a sweep may take beside all the others."""
COMPARED = ("accuracy", "val_nll", "invalid_rate", "weight_drift", "steps")

Results = dict[tuple[str, ...], dict[str, float]]
"""What each cell came to, by method, rate and seed."""


@dataclass(frozen=True)
class Place:
    """A folder with a store, and messages to train on."""

    folder: Path
    data: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("ftmatrix"), *GRID, "data=csv", f"data.path={self.data}", *words],
            cwd=self.folder,
            env=os.environ | {"MLFLOW_TRACKING_URI": self.uri, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def runs(self, query: str) -> list[Run]:
        store = self.folder / "mlflow.db"
        if not store.exists():
            return []
        with FileLock(store.with_name(f".{store.name}.lock")):  # MLflow makes tables too: never beside the sweep
            client = MlflowClient(tracking_uri=self.uri)
            experiment = client.get_experiment_by_name("ftmatrix")
        return list(client.search_runs([experiment.experiment_id], query)) if experiment else []

    def processes(self, known_by: str) -> Iterator[psutil.Process]:
        """Processes that this place's sweep has started, wherever their parents are."""
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("MLFLOW_TRACKING_URI") == self.uri
                if ours and known_by in " ".join(process.cmdline()):
                    yield process
            except psutil.Error:
                continue

    def results(self) -> Results:
        """What each cell came to; every cell must be complete exactly once."""
        runs = self.runs("tags.complete = 'true'")
        found = {
            tuple(run.data.tags[axis] for axis in ("method", "lr", "seed")): {
                name: run.data.metrics[name] for name in COMPARED
            }
            for run in runs
        }
        assert len(found) == len(runs) == CELLS
        return found

    def open_runs(self) -> list[Run]:
        """Runs of cells that are under way."""
        return self.runs("tags.kind = 'cell' AND attributes.status = 'RUNNING'")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, messages_folder: Path) -> Results:
    """The same grid, run by the launcher of this machine's own processes."""
    place = Place(tmp_path_factory.mktemp("local"), messages_folder)
    with place.start("n_jobs=2") as process:
        said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    return place.results()


def kill_a_worker(place: Place, known_by: str, sweep: "subprocess.Popen[str]") -> None:
    """End the process that runs a cell which is in mid-training."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and sweep.poll() is None:
        owners = {int(run.data.tags["owner"].rsplit("/", 2)[1]) for run in place.open_runs()}
        for worker in place.processes(known_by):
            if worker.pid in owners:
                os.kill(worker.pid, signal.SIGKILL)
                return
        time.sleep(0.2)
    sweep.kill()
    raise AssertionError(f"no worker was running a cell: {sweep.communicate()[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("engine", WORKERS)
def test_a_sweep_that_loses_a_worker_has_every_cell_once(
    engine: str, undisturbed: Results, tmp_path: Path, messages_folder: Path
) -> None:
    place = Place(tmp_path, messages_folder)
    process = place.start(f"hydra/launcher={engine}", "n_jobs=2")
    kill_a_worker(place, WORKERS[engine], process)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    assert f"{CELLS} cells go to {engine}" in said
    check_same(place, undisturbed)
    again = place.start(f"hydra/launcher={engine}")
    said = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, said
    assert f"{CELLS} of {CELLS} cells are done already" in said


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_has_every_cell_once(
    undisturbed: Results, tmp_path: Path, messages_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    place = Place(tmp_path, messages_folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = place.start("hydra/launcher=ray", f"hydra.launcher.address={cluster.address}")
        deadline = time.monotonic() + PATIENCE
        while len(place.open_runs()) < 2:  # one on each node
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        cluster.remove_node(node, allow_graceful=False)
        said = process.communicate(timeout=PATIENCE)[0]
    finally:
        cluster.shutdown()
    assert process.returncode == 0, said
    check_same(place, undisturbed)


def check_same(place: Place, undisturbed: Results) -> None:
    """A disturbed sweep has every cell once, with the figures of the undisturbed one, and nothing is left open."""
    assert place.results() == {
        cell: {name: pytest.approx(value, rel=1e-5) for name, value in figures.items()}
        for cell, figures in undisturbed.items()
    }
    assert not place.runs("attributes.status = 'RUNNING'")


@dataclass
class Failing:
    """A job that comes to nothing so many times."""

    failures: int
    cell: Cell

    def done(self) -> bool:
        return True

    def result(self) -> str:
        if self.failures > 0:
            raise RuntimeError("job 7 failed\nTraceback:\n  line 3\nValueError: the node went away\n---")
        return f"run of {self.cell.seed}"

    def cancel(self) -> object:
        return None


class FailingEngine:
    """Loses each cell as often as its seed says."""

    n_jobs = 2
    name = "failing"

    def __init__(self) -> None:
        self.started: list[int] = []

    def open(self) -> None: ...

    def close(self) -> None: ...

    def submit(self, run: object, cells: list[Cell]) -> list[Failing]:
        assert len(cells) <= self.n_jobs
        jobs = [Failing(cell.seed - self.started.count(cell.seed), cell) for cell in cells]
        self.started += [cell.seed for cell in cells]
        return jobs


def test_a_lost_cell_is_started_again_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftmatrix.process.cluster.POLL_SECONDS", 0)
    engine, heard = FailingEngine(), list[int]()
    cells = [Cell(lr=1e-3, seed=seed) for seed in (ATTEMPTS, 0, ATTEMPTS - 1)]
    ends = run_jobs(engine, lambda _: "", cells, lambda cell, _: heard.append(cell.seed))  # type: ignore[arg-type]
    assert ends == [Lost("ValueError: the node went away"), "run of 0", f"run of {ATTEMPTS - 1}"]
    assert sorted(engine.started) == sorted([*[ATTEMPTS] * ATTEMPTS, 0, *[ATTEMPTS - 1] * ATTEMPTS])
    assert sorted(heard) == sorted(cell.seed for cell in cells)


REFUSED = {
    "no Slurm": (("hydra/launcher=submitit_slurm",), "take submitit_local"),
    "no such cluster": (("hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1"), "ray start --head"),
    "no size": (("hydra/launcher=ray", "hydra.launcher.memory=much"), "write a size as 24GiB"),
    "no such launcher": (("hydra/launcher=rya",), "did you mean 'ray'?"),
}


@pytest.mark.parametrize(("words", "way_out"), REFUSED.values(), ids=REFUSED)
def test_an_engine_that_cant_be_had_is_one_line(
    words: tuple[str, ...],
    way_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run([*words, "lr=1e-3", "report=false"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert way_out in line
    assert words[-1].rpartition("=")[2] in line


def test_jobs_take_the_commit_that_a_hubs_model_has_here(make_cell: Callable[..., Cell]) -> None:
    (prepared,) = prepare([make_cell("lr=1e-3")])
    assert isinstance(prepared, ReadyCell)
    hub = replace(prepared.cell.model, hub_id="owner/name")
    known = replace(
        prepared, cell=replace(prepared.cell, model=hub), checkpoint=replace(prepared.checkpoint, revision="c0ffee")
    )
    assert _as_job(known, "sweep").model.revision == "c0ffee"
    assert _as_job(FailedCell(known.cell, CellResult(Outcome.GATED, "why")), "sweep").model.revision == "main"
    assert _as_job(prepared, "sweep").model.revision == "main"


def test_a_missing_package_is_named_with_the_command_that_brings_it() -> None:
    with pytest.raises(ConfigError, match=r"needs the package no_such_thing; pip install 'ftmatrix\[slurm\]'"):
        need("no_such_thing", "submitit_slurm", "slurm")

"""Sweeps that are killed, cut off from their store, or run twice at once: no result is lost, and none is doubled."""

import contextlib
import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import ftmatrix.process.scheduling
import ftmatrix.store.delivery
from ftmatrix.errors import UndeliveredError, first_line
from ftmatrix.machine import replacing
from ftmatrix.process import CellProcess
from ftmatrix.process.child import Began, _with_room
from ftmatrix.process.child import Event as CellEvent
from ftmatrix.records import CellResult, Outcome, Phase, Step
from ftmatrix.spec import Cell, ReadyCell, goal_of, prepare
from ftmatrix.store import CellLog, Courier, Delivery, Journal, Store, is_alive, recover
from ftmatrix.store.journal import RunFacts
from ftmatrix.store.ownership import OWNER_TAG, SEEN_TAG, own_name
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]
PROGRAM = [sys.executable, "-c", "from ftmatrix.cli import main; main()"]
LONG = "training.epochs=15"


class Sweeps:
    """Sweeps in processes of their own, all on one small data set."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"

    def start(self, *overrides: str, folder: str = ".") -> subprocess.Popen[str]:
        (self.folder / folder).mkdir(exist_ok=True)
        words = [
            "data=csv",
            f"data.path={self.data}",
            "training.epochs=1",
            "report=false",
            "tracking.patience_minutes=0.5",
        ]
        return subprocess.Popen(
            [*PROGRAM, *words, *overrides],
            cwd=self.folder / folder,
            env=os.environ | {"MLFLOW_TRACKING_URI": self.uri, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *overrides: str, code: int = 0) -> str:
        with self.start(*overrides) as process:
            said = process.communicate(timeout=300)[0]
        assert process.returncode == code, said
        return said

    def runs(self, query: str = "tags.kind = 'cell'") -> list[Run]:
        store = MlflowClient(tracking_uri=self.uri)
        (experiment,) = store.search_experiments(filter_string="name = 'ftmatrix'")
        return list(store.search_runs([experiment.experiment_id], query))

    def complete(self) -> Counter[str]:
        """How often each rate has a complete run."""
        return Counter(run.data.tags["lr"] for run in self.runs("tags.complete = 'true'"))


@pytest.fixture
def sweeps(tmp_path: Path, data_folder: Path) -> Sweeps:
    return Sweeps(tmp_path, data_folder)


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read what a sweep says until it says these words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"never said {words!r}:\n{said}")


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_sweep_is_gone_on_with_by_the_same_command(sweeps: Sweeps) -> None:
    command = ("lr=1e-3,2e-3", "n_jobs=1", LONG)
    process = sweeps.start(*command)
    wait_for(process, "start  full pocket-1m lr=0.002")
    until(lambda: has_steps(sweeps.folder, "lr=0.002"))
    process.kill()
    process.communicate()
    assert {run.info.status for run in sweeps.runs("attributes.status = 'RUNNING'")} == {"RUNNING"}
    said = sweeps.run(*command)
    assert "1 cell(s) were running when an earlier sweep died; their runs are closed" in said
    assert "1 run(s) of dead processes were still open; closed" in said  # the sweep's own
    assert "1 of 2 cells are done already" in said
    assert sweeps.complete() == {"0.001": 1, "0.002": 1}
    assert not sweeps.runs("attributes.status = 'RUNNING'")
    (closed,) = [run for run in sweeps.runs() if run.data.tags["outcome"] == "interrupted"]
    assert closed.data.tags["reason"].startswith("its sweep died after ")
    assert closed.data.metrics["step/loss"] > 0  # as far as it came


def has_steps(folder: Path, named: str) -> bool:
    """Whether a cell of this name has written steps down."""
    for path in folder.glob(".ftmatrix/cells/*/run.json"):
        steps = path.with_name("steps.jsonl")
        if named in path.read_text() and steps.exists() and steps.stat().st_size:
            return True
    return False


@pytest.mark.slow
def test_interrupted_twice_a_sweep_goes_at_once(sweeps: Sweeps) -> None:
    process = sweeps.start("lr=1e-3,2e-3", "n_jobs=2", LONG)
    wait_for(process, "start  full pocket-1m lr=0.002")
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("folders", [(".", "."), ("here", "there")], ids=["one folder", "two folders"])
def test_two_sweeps_at_once_run_every_cell_once(folders: tuple[str, str], sweeps: Sweeps) -> None:
    rates = ("1e-3,2e-3", "2e-3,3e-3")
    both = [
        sweeps.start(f"lr={lr}", "n_jobs=1", "training.epochs=5", folder=folder)
        for lr, folder in zip(rates, folders, strict=True)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sweeps.complete() == {"0.001": 1, "0.002": 1, "0.003": 1}
    assert not sweeps.runs("attributes.status = 'RUNNING'")
    for words, known in zip(said, (("0.001", "0.002"), ("0.002", "0.003")), strict=True):
        table = words[words.rindex("ftmatrix, sweep ") :]
        assert all(rate in table for rate in known)


def as_the_first_cell_trains(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something once, when the first cell of a sweep in this process begins to train."""
    waiting = [act]

    class Watched(CellProcess):
        def receive(self) -> CellEvent:
            event = super().receive()
            if event == Began(Phase.TRAIN) and waiting:
                waiting.pop()()
            return event

    monkeypatch.setattr(ftmatrix.process.scheduling, "CellProcess", Watched)


@pytest.mark.slow
def test_a_store_that_another_writer_locks_is_waited_for(
    quick_cell: QuickCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as writer:
            until(lambda: exclusively(writer))
            time.sleep(12)  # longer than SQLite waits by itself
            writer.execute("COMMIT")

    as_the_first_cell_trains(monkeypatch, Thread(target=hold).start)
    rows = sweep([quick_cell(f"lr={lr}") for lr in ("1e-3", "2e-3")], n_jobs=1)
    assert [row and row.completed for row in rows] == [True, True]


def exclusively(writer: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.OperationalError):
        writer.execute("BEGIN EXCLUSIVE")
        return True
    return False


class Server:
    """A real MLflow server on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        words += ["--artifacts-destination", str(self.folder / "served"), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
            return True
        return False

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_while_the_server_is_away_results_wait(
    quick_cell: QuickCell, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cells() -> list[Cell]:
        words = (f"tracking.uri={server.uri}", "tracking.patience_minutes=0.01", "training.epochs=5")
        return [quick_cell(f"lr={lr}", *words) for lr in ("1e-3", "2e-3")]

    with monkeypatch.context() as patched:
        as_the_first_cell_trains(patched, server.stop)
        with pytest.raises(UndeliveredError, match=r"2 result\(s\) wait in .*, the same command delivers them"):
            sweep(cells(), n_jobs=1)
    assert "[2/2]  full pocket-1m lr=0.002" in capsys.readouterr().out
    server.start()
    rows = sweep(cells(), n_jobs=1)
    said = capsys.readouterr().out
    assert "2 result(s) of an earlier sweep hadn't reached MLflow; delivered now" in said
    assert "1 run(s) of dead processes" not in said  # this process lives, and so does its first sweep's run
    assert "2 of 2 cells are done already" in said
    assert "start  full" not in said
    store = MlflowClient(tracking_uri=server.uri)
    for row in rows:
        assert row is not None
        assert row.completed
        history = store.get_metric_history(row.run_id, "step/loss")
        assert sorted(point.step for point in history) == list(range(30))


@pytest.mark.slow
def test_a_server_that_comes_back_gets_all(
    quick_cell: QuickCell, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed, real = Event(), Courier.failed

    def failed(courier: Courier, error: Exception, of: str = "a question") -> None:
        real(courier, error, of)
        missed.set()

    monkeypatch.setattr(Courier, "failed", failed)

    def start_later() -> None:
        missed.wait(120)
        server.start()

    def restart() -> None:
        server.stop()
        Thread(target=start_later).start()

    as_the_first_cell_trains(monkeypatch, restart)
    rows = sweep([quick_cell(f"lr={lr}", f"tracking.uri={server.uri}") for lr in ("1e-3", "2e-3")], n_jobs=1)
    assert [row and row.completed for row in rows] == [True, True]
    assert "MLflow answers again" in capsys.readouterr().out


def facts(store: Store, goal: str | None = None) -> RunFacts:
    return RunFacts(
        key="k1",
        goal=goal or store.goal,
        name="a cell",
        started_ms=1000,
        tags={"kind": "cell", "record": "k1", OWNER_TAG: own_name(), "fingerprint": "f"},
        parameters={"lr": "0.001"},
    )


def step(index: int) -> Step:
    return Step(index, 1e-3, 1.0 / (index + 1), 1.0, 10, 5, 0.1)


def open_journal(folder: Path) -> Journal:
    journal = Journal.claim(folder)
    assert journal is not None
    return journal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'mlflow.db'}", "ftmatrix")


def test_a_record_is_delivered_once_however_often_it_is_cut_off(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every single call to MLflow the process dies; the next one goes on. The run is the same as of one go."""
    folder = tmp_path / "work" / "cells" / "one"
    journal = open_journal(folder)
    journal.begin(facts(store))
    CellLog(folder).add([step(index) for index in range(400)])
    (journal.files / "log.txt").write_text("said")
    CellLog(folder).end(CellResult(Outcome.COMPLETED, steps=400))
    journal.release()

    class DiedError(Exception):
        pass

    calls = ("create_run", "log_batch", "log_artifacts", "set_tag", "set_terminated")
    deaths = 0
    for dies_after in range(1, 50):
        left = dies_after

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                done = real(*arguments, **named)
                left -= 1
                if not left:
                    raise DiedError
                return done

            return call

        with monkeypatch.context() as patched:
            for name in calls:
                patched.setattr(store.client, name, counted(getattr(store.client, name)))
            try:
                journal = open_journal(folder)
                assert Delivery(store, journal).advance()
                break
            except DiedError:
                deaths += 1
                journal.release()
    assert deaths > 5
    assert not folder.exists()
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1000
    assert run.data.tags["complete"] == "true"
    history = store.client.get_metric_history(run.info.run_id, "step/loss")
    assert sorted(point.step for point in history) == list(range(400))


def test_a_full_disk_costs_no_step(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work" / "cells" / "one"
    journal = open_journal(folder)
    journal.begin(facts(store))
    log = CellLog(folder)
    log.add([step(0)])
    real = Path.open

    def full(path: Path, *arguments: Any, **named: Any) -> Any:
        file = real(path, *arguments, **named)
        file.write('[12, {"index": 1, "lr"')  # as far as there was room
        file.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        log.add([step(1)])
    log.add([step(2)])
    assert [timed.step.index for timed in journal.steps()] == [0, 1, 2]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        log.add([step(3)])
        with pytest.raises(OSError, match="No space left"):
            log.end(CellResult(Outcome.COMPLETED))
    assert journal.look() is None
    log.end(CellResult(Outcome.COMPLETED))  # the result comes after all steps, or not at all
    assert [timed.step.index for timed in journal.steps()] == [0, 1, 2, 3]
    assert journal.look() is not None


def test_a_cut_off_file_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    full = OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with replacing(tmp_path / "file") as file:
            file.write(b"ne")
            raise full

    with pytest.raises(OSError, match="No space"):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_what_waits_for_room_is_a_full_disk_alone(
    error: Exception, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error

    monkeypatch.setattr("ftmatrix.process.child.time.sleep", lambda _: None)
    with contextlib.nullcontext() if full else pytest.raises(OSError, match="Permission"):
        _with_room(write, lambda: False)
    assert len(calls) == 1 + full


def test_a_lost_answer_makes_no_second_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store.client.create_run

    def asked_again(*arguments: Any, **named: Any) -> Run:
        real(*arguments, **named)
        return real(*arguments, **named)

    monkeypatch.setattr(store.client, "create_run", asked_again)
    run_id = store.begin(facts(store))
    assert [run.info.run_id for run in store.client.search_runs([store.experiment_id])] == [run_id]
    assert store.run_of(facts(store)) == run_id


def test_a_deleted_run_is_made_again_and_costs_the_others_nothing(store: Store, tmp_path: Path) -> None:
    told: list[str] = []
    sweep_run = store.client.create_run(store.experiment_id).info.run_id
    courier = Courier(store, sweep_run, told.append)
    deliveries = []
    for name in ("a", "b"):
        journal = open_journal(tmp_path / "work" / "cells" / name)
        journal.begin(replace(facts(store), key=name, tags={"record": name, "kind": "cell"}))
        deliveries.append(Delivery(store, journal))
        deliveries[-1].open()
        courier.follow(deliveries[-1])
    gone = deliveries[0].run_id
    store.client.delete_run(str(gone))
    for delivery in deliveries:
        CellLog(delivery.journal.folder).end(CellResult(Outcome.COMPLETED, steps=1))
    assert courier.close(60) == []
    assert courier.away is False
    assert [line.split("(")[0] for line in told] == ["MLflow takes nothing just now ", "MLflow answers again"]
    complete = store.client.search_runs([store.experiment_id], "tags.complete = 'true'")
    assert {run.info.run_id for run in complete} == {delivery.run_id for delivery in deliveries}
    assert gone not in {run.info.run_id for run in complete}


def test_a_run_that_another_process_has_taken_up_is_not_buried(store: Store) -> None:
    made = store.client.create_run(store.experiment_id, tags={"kind": "cell", OWNER_TAG: "x/1/1"})
    seen = store.client.get_run(made.info.run_id)
    store.client.set_tag(made.info.run_id, OWNER_TAG, own_name())
    assert store.close_dead(seen) is False
    assert store.client.get_run(made.info.run_id).info.status == "RUNNING"


def test_a_store_is_the_same_with_a_new_password() -> None:
    assert goal_of("http://me:old@mlflow.example/", "s") == goal_of("http://me:new@mlflow.example", "s")
    assert goal_of("http://me:old@mlflow.example", "s") != goal_of("http://me:old@mlflow.example", "other")


def strand(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a cell whose result stays on this disk."""

    def refuse(*_: object) -> bool:
        raise OSError("away")

    impatient = replace(cell, tracking=replace(cell.tracking, patience_minutes=0))
    with monkeypatch.context() as away:
        away.setattr(ftmatrix.store.delivery.Delivery, "advance", refuse)
        with pytest.raises(UndeliveredError):
            sweep([impatient])


def test_an_unreadable_result_is_said_and_kept(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = quick_cell("lr=1e-3")
    strand(cell, monkeypatch)
    (result,) = Path(cell.work_dir).glob("cells/*/result.json")
    result.write_text('{"written by": "another version"}')
    (row,) = sweep([cell])
    assert row is not None
    assert row.outcome is Outcome.CRASHED
    assert "holds a record that can't be read (" in str(row.reason)
    assert "; mend it, or move it away" in str(row.reason)
    assert "its record can't be read; it stays there" in capsys.readouterr().out
    assert result.read_text() == '{"written by": "another version"}'


def test_a_waiting_result_without_weights_is_no_answer_to_a_cell_that_keeps_them(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    strand(quick_cell("lr=1e-3"), monkeypatch)
    monkeypatch.setattr("ftmatrix.sweep.campaign.recover", lambda *_: [])
    (row,) = sweep([quick_cell("lr=1e-3", "save_model=true")])
    assert row is not None
    assert row.completed
    store = Store(str(quick_cell().tracking.uri), "ftmatrix")
    complete = store.client.search_runs([store.experiment_id], "tags.complete = 'true'")
    assert sorted("weights" in run.data.tags for run in complete) == [False, True]


def test_a_cell_that_has_trained_may_finish(quick_cell: QuickCell) -> None:
    (ready,) = prepare([quick_cell("lr=1e-3")])
    assert isinstance(ready, ReadyCell)
    journal = open_journal(ready.folder)
    journal.begin(replace(facts(Store(str(ready.cell.tracking.uri), "ftmatrix"))))
    process = CellProcess(ready)
    phases: list[Phase] = []
    while phases.count(Phase.TRAIN) < 2 or phases[-1] is not Phase.EVALUATE:  # the first is its rehearsal
        event = process.receive()
        if isinstance(event, Began):
            phases.append(event.phase)
    process.ask_to_stop()
    result = process.last_words(time.monotonic() + 60)
    process.kill()
    assert result is not None
    assert result.outcome is Outcome.COMPLETED
    assert journal.look() is not None


def test_an_error_is_told_without_the_password() -> None:
    error = OSError("API request to http://me:PlantedWord@127.0.0.1:9/api failed")
    assert first_line(error) == "API request to http://127.0.0.1:9/api failed"


def test_a_bad_record_costs_neither_the_others_nor_the_sweep(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    for name in ("a", "b", "c"):
        journal = open_journal(work / "cells" / name)
        journal.begin(replace(facts(store), key=name, tags={"record": name, "kind": "cell"}))
        CellLog(journal.folder).end(CellResult(Outcome.COMPLETED))
        journal.release()
    (work / "cells" / "b" / "run.json").write_text("{")
    real = store.begin

    def refuses(begun: RunFacts) -> str:
        if begun.key == "a":
            raise OSError("no such artifact store")
        return real(begun)

    monkeypatch.setattr(store, "begin", refuses)
    lines = recover(store, work)
    assert lines[0] == "1 result(s) of an earlier sweep hadn't reached MLflow; delivered now"
    assert any("cells/a: its record can't be delivered (no such artifact store)" in line for line in lines)
    assert any(line.endswith("cells/b: its record can't be read; it stays there") for line in lines)
    assert not (work / "cells" / "c").exists()


def test_a_run_that_died_between_its_last_two_words_is_complete(store: Store) -> None:
    run = store.client.create_run(store.experiment_id, tags={"kind": "cell", "complete": "true", OWNER_TAG: "x/1/1"})
    store.close_dead(store.client.get_run(run.info.run_id))
    closed = store.client.get_run(run.info.run_id)
    assert closed.info.status == "FINISHED"
    assert "outcome" not in closed.data.tags


def test_a_run_that_was_deleted_is_made_again(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "cells" / "one"
    journal = open_journal(folder)
    journal.begin(facts(store))
    first = Delivery(store, journal).open().run_id
    store.client.delete_run(first)
    journal.end(CellResult(Outcome.CRASHED, "no"))
    delivery = Delivery(store, journal)
    assert delivery.advance()
    assert delivery.run_id != first


def test_a_result_that_waits_is_taken_and_not_trained_again(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strand(quick_cell("lr=1e-3"), monkeypatch)
    capsys.readouterr()
    monkeypatch.setattr("ftmatrix.sweep.campaign.recover", lambda *_: [])  # as if it had come after this sweep's start
    (row,) = sweep([quick_cell("lr=1e-3")])
    assert row is not None
    assert row.completed
    said = capsys.readouterr().out
    assert "[1/1]  full pocket-1m lr=0.001 seed=0  taken from another sweep" in said
    assert "start  " not in said


@pytest.mark.slow
def test_a_cell_dies_with_its_sweep_whatever_it_does(sweeps: Sweeps) -> None:
    process = sweeps.start("lr=1e-3", "n_jobs=1", LONG)
    wait_for(process, "start  full pocket-1m lr=0.001")
    until(lambda: has_steps(sweeps.folder, "lr=0.001"))
    child = max(psutil.Process(process.pid).children(recursive=True), key=lambda found: found.create_time())
    child.suspend()  # it says nothing, and so can't learn from a broken pipe
    process.kill()
    process.wait()
    child.resume()
    alive = psutil.wait_procs([child], timeout=10)[1]
    assert process.stdout is not None
    process.stdout.close()
    assert alive == []


def test_a_step_that_was_cut_off_is_left_for_later(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "cells" / "one"
    journal = open_journal(folder)
    journal.begin(facts(store))
    log = CellLog(folder)
    log.add([step(0)])
    with (folder / "steps.jsonl").open("a") as file:
        file.write('[12, {"index": 1, "lr"')
    assert [timed.step.index for timed in journal.steps()] == [0]
    assert journal.steps(1) == []


def test_one_process_holds_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "one"
    journal = open_journal(folder)
    assert Journal.claim(folder) is None
    journal.release()
    open_journal(folder).release()


def test_records_of_another_store_are_left_alone(store: Store, tmp_path: Path) -> None:
    work = tmp_path / "work"
    other = open_journal(work / "cells" / "other")
    other.begin(facts(store, goal="elsewhere"))
    other.release()
    assert recover(store, work) == ["1 record(s) of other studies or stores wait here; a sweep of theirs delivers them"]
    assert (work / "cells" / "other" / "run.json").exists()


def test_who_is_alive() -> None:
    def run(owner: str | None, seen: float = 0) -> Any:
        tags = {SEEN_TAG: str(int(1000 * seen))} | ({OWNER_TAG: owner} if owner else {})
        return type("R", (), {"data": type("D", (), {"tags": tags}), "info": type("I", (), {"start_time": 0})})

    host, pid, started = own_name().rsplit("/", 2)
    assert is_alive(run(own_name()))
    assert not is_alive(run(f"{host}/{pid}/{int(started) - 1000}"))  # another process had the number before
    assert not is_alive(run(f"{host}/{2**22 + 1}/{started}"))
    assert not is_alive(run(None))
    assert is_alive(run("elsewhere/1/1", seen=time.time() - 60))
    assert not is_alive(run("elsewhere/1/1", seen=time.time() - 3600))


def test_what_no_store_takes_is_said_and_stays(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> bool:
        raise OSError("database or disk is full")

    with monkeypatch.context() as full:
        full.setattr(ftmatrix.store.delivery.Delivery, "advance", refuse)
        with pytest.raises(UndeliveredError, match=r"takes nothing \(database or disk is full\); 1 result\(s\) wait"):
            sweep([quick_cell("lr=1e-3", "tracking.patience_minutes=0.01")])
    (row,) = sweep([quick_cell("lr=1e-3")])
    assert row is not None
    assert row.completed
    assert "1 result(s) of an earlier sweep hadn't reached MLflow; delivered now" in capsys.readouterr().out


SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOne",
    "AWS_SECRET_ACCESS_KEY": "PlantedSecretTwo",
    "MLFLOW_TRACKING_PASSWORD": "PlantedPasswordThree",
    "MY_OWN_VARIABLE": "PlantedValueFour",
}


@pytest.mark.slow
def test_secrets_reach_nothing_that_is_written(sweeps: Sweeps, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither environment variables nor the tracking URI's password; all files, both databases, all that is printed."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    sweeps.uri = server.uri.replace("http://", "http://me:PlantedWordFive@")
    said = sweeps.run("lr=1e-3", f"tracking.uri={sweeps.uri}", "save_model=true")
    said += sweeps.run("lr=1e-3,2", f"tracking.uri={sweeps.uri}", code=2)
    stranded = sweeps.start("lr=2e-3", f"tracking.uri={sweeps.uri}", "tracking.patience_minutes=0.01", LONG)
    said += wait_for(stranded, "start  full pocket-1m lr=0.002")
    server.stop()
    said += stranded.communicate(timeout=120)[0]
    assert stranded.returncode == 1
    assert "MLflow takes nothing just now" in said
    server.start()
    report = subprocess.run(
        [*PROGRAM, "report"],
        cwd=sweeps.folder,
        env=os.environ | {"MLFLOW_TRACKING_URI": sweeps.uri},
        capture_output=True,
        text=True,
        check=True,
    )
    planted = [*SECRETS.values(), "PlantedWordFive"]
    written = [path for path in sweeps.folder.rglob("*") if path.is_file()]
    assert any(path.name == "report.md" for path in written)
    assert any(path.name == "server.db" for path in written)
    assert any(path.name == "environment.json" for path in written)
    contents = {str(path): path.read_bytes() for path in written}
    contents["printed"] = (said + report.stdout + report.stderr).encode()
    found = {(place, secret) for place, content in contents.items() for secret in planted if secret.encode() in content}
    assert found == set()

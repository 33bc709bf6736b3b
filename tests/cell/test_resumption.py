"""A cell that dies goes on where it was: the same losses, to the last digit that matters."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

import ftmatrix.process.scheduling
from ftmatrix.cell import CellRun
from ftmatrix.cell.resumption import Progress, ProgressFile
from ftmatrix.cell.run import Trained
from ftmatrix.errors import StoppedError
from ftmatrix.process import CellProcess, Stepped
from ftmatrix.process.child import Event
from ftmatrix.records import Outcome, Phase, Row, Step
from ftmatrix.spec import Cell, ReadyCell, prepare
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]
DROPOUT = ("method=lora", "method.dropout=0.1", "lr=3e-3")
OFTEN = "checkpoint_minutes=1e-9"


def ready(cell: Cell) -> ReadyCell:
    (found,) = prepare([cell])
    assert isinstance(found, ReadyCell)
    found.folder.mkdir(parents=True, exist_ok=True)
    return found


def run(cell: ReadyCell, *, stop_after: int | None = None) -> tuple[Trained | None, list[Step]]:
    steps: list[Step] = []

    def emit(happened: Phase | Step) -> None:
        if isinstance(happened, Step):
            steps.append(happened)

    try:
        return CellRun(cell, emit, lambda: len(steps) == stop_after).run(), steps
    except StoppedError:
        return None, steps


@pytest.mark.parametrize(
    "overrides",
    [("method=full", "lr=3e-3"), DROPOUT, pytest.param((*DROPOUT, "method=qlora"), marks=pytest.mark.slow)],
)
def test_a_stopped_cell_goes_on_to_the_same_losses_and_answers(
    overrides: tuple[str, ...], quick_cell: QuickCell, tmp_path: Path
) -> None:
    whole, expected = run(ready(quick_cell(*overrides, f"work_dir={tmp_path / 'whole'}")))
    cell = ready(quick_cell(*overrides))
    stopped, first = run(cell, stop_after=3)
    assert stopped is None
    assert cell.progress.exists()
    resumed, all_steps = run(cell)
    assert whole is not None
    assert resumed is not None
    assert [step.loss for step in first] == pytest.approx([step.loss for step in expected[:3]], abs=1e-6)
    assert [step.loss for step in all_steps] == pytest.approx([step.loss for step in expected], abs=1e-6)
    assert [step.lr for step in all_steps] == [step.lr for step in expected]
    assert resumed.result.val_nll_initial == whole.result.val_nll_initial
    assert resumed.result.test is not None
    assert whole.result.test is not None
    assert resumed.result.test.nll == pytest.approx(whole.result.test.nll, abs=1e-6)
    assert "resumed after 3 steps: times and peaks are those of several processes" in resumed.result.notes
    assert {peak.phase for peak in resumed.result.peaks} == {"load", "evaluate", "train"}
    assert resumed.result.memory == whole.result.memory


def test_progress_is_saved_when_it_is_time_and_never_by_halves(tmp_path: Path) -> None:
    progress = Progress((), 1.0, None, None, (), {"train": 2.0})
    file = ProgressFile(tmp_path / "progress.pt", minutes=0)
    assert not file.due
    assert not ProgressFile(tmp_path / "progress.pt", minutes=5).due
    assert ProgressFile(tmp_path / "progress.pt", minutes=1e-9).due
    assert file.load() is None
    file.save(progress, {"weights": [torch.ones(3)]})
    loaded = file.load()
    assert loaded is not None
    assert loaded.progress == progress
    assert torch.equal(loaded.state["weights"][0], torch.ones(3))
    content = file.path.read_bytes()
    for kept in (0, 7, len(content) // 2, len(content) - 9):
        file.path.write_bytes(content[:kept])
        assert file.load() is None
    file.path.write_bytes(content[:100] + bytes(100) + content[200:])
    assert file.load() is None


def test_a_killed_cell_is_resumed_by_the_same_command(quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doomed(CellProcess):
        """Is killed once it has saved progress."""

        def receive(self) -> Event:
            event = super().receive()
            if isinstance(event, Stepped) and self.ready.progress.exists():
                assert self.pid is not None
                os.kill(self.pid, signal.SIGKILL)
            return event

    overrides = ("lr=3e-3", "training.epochs=12")
    (undisturbed,) = rows([quick_cell(*overrides, "study=undisturbed")])
    with monkeypatch.context() as patched:
        patched.setattr(ftmatrix.process.scheduling, "CellProcess", Doomed)
        (killed,) = rows([quick_cell(*overrides, OFTEN)])
    assert killed.outcome is Outcome.CRASHED
    assert "SIGKILL" in str(killed.reason)
    cell = quick_cell(*overrides)
    assert ready(cell).progress.exists()
    (again,) = rows([cell])
    assert again.outcome is Outcome.COMPLETED
    assert again.run_id != killed.run_id
    client = MlflowClient(tracking_uri=str(cell.tracking.uri))
    assert "resumed after " in client.get_run(again.run_id).data.tags["notes"]
    assert curve(client, again) == pytest.approx(curve(client, undisturbed), abs=1e-6)
    fingerprint = client.get_run(again.run_id).data.tags["fingerprint"]
    left = {path.name for path in (Path(cell.work_dir) / "cells").glob(f"{fingerprint}-*")}
    assert left == set()


def test_force_begins_anew(quick_cell: QuickCell) -> None:
    cell = quick_cell("lr=3e-3", "training.epochs=2")
    run(ready(cell), stop_after=3)
    (row,) = rows([replace(cell, force=True)])
    notes = MlflowClient(tracking_uri=str(cell.tracking.uri)).get_run(row.run_id).data.tags.get("notes", "")
    assert "resumed" not in notes


def rows(cells: list[Cell]) -> list[Row]:
    return [row for row in sweep(cells, n_jobs=1) if row is not None]


def curve(client: MlflowClient, row: Row) -> list[Any]:
    history = client.get_metric_history(row.run_id, "step/loss")
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]

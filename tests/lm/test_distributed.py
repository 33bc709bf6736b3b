"""One cell on several devices, here processes of a CPU: what one alone comes to, in parts."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from limits import leave_address_space
from mlflow import MlflowClient
from safetensors.torch import load_file

import ftmatrix.process.scheduling
from ftmatrix.errors import UnsupportedError
from ftmatrix.machine import Accelerator, Device, share_of
from ftmatrix.process import CellProcess, Stepped
from ftmatrix.process.child import Began, Event
from ftmatrix.records import Outcome, Phase, Row
from ftmatrix.spec import Cell
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]
TWO = "devices=2"
ROOM = 40 * 2**20
"""Enough to score a few messages, and not to train on many."""


def rows_of(cells: list[Cell]) -> list[Row]:
    rows = [row for row in sweep(cells, n_jobs=1) if row is not None]
    assert len(rows) == len(cells)
    return rows


def curve(cell: Cell, row: Row, name: str = "loss") -> list[float]:
    history = MlflowClient(tracking_uri=str(cell.tracking.uri)).get_metric_history(row.run_id, f"step/{name}")
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


WAYS = (("method=full", TWO),)
MORE_WAYS = (
    ("method=lora", TWO, "shard=true"),
    ("method=full", TWO, "shard=true"),
    ("method=lora", TWO),
    ("method=qlora", TWO),
    ("method=full", TWO, "training.micro_batch_size=2"),
    ("method=full", TWO, "shard=true", "training.micro_batch_size=2"),
)


@pytest.mark.parametrize(
    "settings", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in MORE_WAYS)], ids=" ".join
)
def test_two_come_to_what_one_does(settings: tuple[str, ...], quick_cell: QuickCell) -> None:
    """The last batch has 6 messages, all of which are the first one's."""
    method, *_ = settings
    cells = [quick_cell(method, "lr=3e-3"), quick_cell(*settings, "lr=3e-3")]
    alone, together = rows_of(cells)
    assert together.outcome is Outcome.COMPLETED, together.reason
    for name, within in (("loss", 1e-4), ("grad_norm", 1e-3)):
        assert curve(cells[1], together, name) == pytest.approx(curve(cells[0], alone, name), rel=within)
    for name in ("val_nll_initial", "val_nll", "nll", "weight_drift", "forgetting"):
        assert together.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-3), name
    for name in ("accuracy", "trainable_parameters", "parameters", "steps"):
        assert together.metrics[name] == alone.metrics[name], name
    assert together.facts["device"].startswith("2 x ")
    assert together.run_id != alone.run_id


@pytest.mark.slow
def test_shards_hold_a_part_of_everything(quick_cell: QuickCell) -> None:
    alone, together = rows_of([quick_cell("lr=1e-3"), quick_cell("lr=1e-3", TWO, "shard=true")])
    for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes"):
        assert together.metrics[name] == pytest.approx(alone.metrics[name] / 2, rel=0.02), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_weights_of_a_sharded_model_are_saved_whole(method: str, quick_cell: QuickCell) -> None:
    settings = (f"method={method}", "lr=1e-3", "save_model=true")
    cells = [quick_cell(*settings), quick_cell(*settings, TWO, "shard=true")]
    kept = []
    for cell, row in zip(cells, rows_of(cells), strict=True):
        client = MlflowClient(tracking_uri=str(cell.tracking.uri))
        folder = Path(client.download_artifacts(row.run_id, "model"))
        (file,) = folder.glob("*.safetensors")
        kept.append(load_file(file))
    assert kept[0].keys() == kept[1].keys()
    for name, weight in kept[0].items():
        assert (kept[1][name] - weight).abs().max() < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["false", "true"])
def test_a_killed_cell_on_two_devices_goes_on_to_the_same_losses(
    sharded: str, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doomed(CellProcess):
        def receive(self) -> Event:
            event = super().receive()
            if isinstance(event, Stepped) and self.ready.progress.exists():
                os.kill(self._processes[0].pid or 0, signal.SIGKILL)
            return event

    settings = ("method=lora", "method.dropout=0.1", "lr=3e-3", "training.epochs=12", TWO, f"shard={sharded}")
    undisturbed = quick_cell(*settings, "study=undisturbed")
    (expected,) = rows_of([undisturbed])
    with monkeypatch.context() as patched:
        patched.setattr(ftmatrix.process.scheduling, "CellProcess", Doomed)
        (killed,) = rows_of([quick_cell(*settings, "checkpoint_minutes=1e-9")])
    assert killed.outcome is Outcome.CRASHED
    cell = quick_cell(*settings)
    (again,) = rows_of([cell])
    run = MlflowClient(tracking_uri=str(cell.tracking.uri)).get_run(again.run_id)
    assert "resumed after " in run.data.tags["notes"]
    assert curve(cell, again) == pytest.approx(curve(undisturbed, expected), abs=1e-5)


def test_a_death_in_the_second_process_is_the_cells(quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch) -> None:
    in_its_second_process(monkeypatch, Phase.TRAIN, lambda pid: os.kill(pid, signal.SIGKILL))
    killed, other = rows_of([quick_cell(TWO, "lr=2e-3", "training.epochs=20"), quick_cell("lr=3e-3")])
    assert killed.outcome is Outcome.CRASHED
    assert "died of SIGKILL while training" in str(killed.reason)
    assert other.outcome is Outcome.COMPLETED


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
def test_a_failure_in_the_second_process_is_told_as_it_was(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_its_second_process(monkeypatch, Phase.EVALUATE, partial(leave_address_space, room=ROOM))
    settings = ("training.batch_size=160", "evaluation.batch_size=2", "evaluation.forgetting=false")
    (row,) = rows_of([quick_cell(TWO, "lr=2e-3", *settings)])
    assert row.outcome is Outcome.OUT_OF_MEMORY, row.reason
    assert "memory ran out while training" in str(row.reason)


def in_its_second_process(monkeypatch: pytest.MonkeyPatch, phase: Phase, act: Callable[[int], object]) -> None:
    """Do something to the second process of the cell with rate 2e-3 as the first enters a phase."""

    class Watched(CellProcess):
        def receive(self) -> Event:
            event = super().receive()
            if event == Began(phase) and self.ready.cell.lr == 2e-3:
                act(self._processes[1].pid or 0)
            return event

    monkeypatch.setattr(ftmatrix.process.scheduling, "CellProcess", Watched)


def test_more_devices_than_there_are_is_refused(cpu: Accelerator) -> None:
    with pytest.raises(UnsupportedError, match=r"^devices=2: 1 of device=mps here"):
        share_of(Accelerator(Device.mps, "Apple", 2**34, True), 2)
    assert cpu.free_bytes is not None
    assert share_of(cpu, 2).free_bytes == cpu.free_bytes // 2

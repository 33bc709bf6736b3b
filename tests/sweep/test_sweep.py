"""Sweeps in this process with real cells in processes of their own, and a real MLflow store."""

import contextlib
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from limits import leave_address_space
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import ftmatrix.process.scheduling
from ftmatrix.errors import ConfigError
from ftmatrix.machine.host import GROUPS
from ftmatrix.process import CellProcess
from ftmatrix.process.child import Began, Event
from ftmatrix.records import CellResult, Outcome, Phase, Row, from_json
from ftmatrix.spec import Cell, ReadyCell, prepare
from ftmatrix.store import Store
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]


def rows_of(cells: list[Cell], **options: Any) -> list[Row]:
    rows = sweep(cells, **options)
    assert all(row is not None for row in rows)
    return [row for row in rows if row is not None]


def client(cell: Cell) -> MlflowClient:
    return MlflowClient(tracking_uri=str(cell.tracking.uri))


def losses(cell: Cell, row: Row) -> list[float]:
    history = client(cell).get_metric_history(row.run_id, "step/loss")
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


@pytest.fixture
def three_methods(quick_cell: QuickCell) -> list[Cell]:
    return [quick_cell(f"method={method}", "lr=3e-3") for method in ("full", "lora", "qlora")]


@pytest.fixture
def finished(three_methods: list[Cell]) -> tuple[list[Cell], list[Row]]:
    return three_methods, rows_of(three_methods, n_jobs=1)


def test_a_sweep_records_every_cell_side_by_side(finished: tuple[list[Cell], list[Row]], tmp_path: Path) -> None:
    cells, rows = finished
    assert [row.method for row in rows] == ["full", "lora", "qlora"]
    for cell, row in zip(cells, rows, strict=True):
        assert row.outcome is Outcome.COMPLETED
        assert 0 <= row.metrics["accuracy"] <= 1
        assert row.metrics["peak_bytes_train"] > 2**20
        assert row.metrics["seconds_train"] > 0
        assert 0 < row.metrics["weight_drift"] < 1
        assert row.metrics["retention"] == pytest.approx(1 / row.metrics["forgetting"])
        run = client(cell).get_run(row.run_id)
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"{cell.method.name} pocket-1m lr=0.003 seed=0"
        assert run.data.params["training.epochs"] == "1"
        assert run.data.tags["model.revision"] == run.data.tags["model.revision"].lower()
        assert run.inputs is not None
        assert run.inputs.dataset_inputs[0].dataset.name == cell.data.title
        assert len(losses(cell, row)) == -(-86 // 16)
        files = {file.path for file in client(cell).list_artifacts(row.run_id)}
        assert files >= {
            "config.yaml", "environment.json", "result.json", "predictions.csv", "intents.csv", "confusion.csv",
            "confusion.png", "log.txt",
        }  # fmt: skip
        downloaded = Path(client(cell).download_artifacts(row.run_id, "result.json", str(tmp_path)))
        result = from_json(CellResult, downloaded.read_text())
        assert result.test is not None
        assert result.test.accuracy == row.metrics["accuracy"]
        predictions = pandas.read_csv(client(cell).download_artifacts(row.run_id, "predictions.csv", str(tmp_path)))
        assert predictions["correct"].mean() == pytest.approx(row.metrics["accuracy"])
    store = client(cells[0])
    (experiment,) = store.search_experiments(filter_string="name = 'ftmatrix'")
    (swept,) = store.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    assert swept.info.status == "FINISHED"
    table = pandas.read_csv(store.download_artifacts(swept.info.run_id, "comparison.csv", str(tmp_path)))
    assert sorted(table["method"]) == ["full", "lora", "qlora"]


def test_wrong_claims_are_told_before_anything_runs(
    quick_cell: QuickCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "experiments" / "mine"
    study.mkdir(parents=True)
    (study / "grid.yaml").write_text("# @package _global_\n")
    (study / "claims.yaml").write_text("C1: {statement: It works., statistic: hope}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="hope"):
        sweep([quick_cell("study=mine", "report=true")])
    assert not (tmp_path / "mlflow.db").exists()


def test_what_is_done_is_taken_as_it_is_and_only_the_new_runs(
    quick_cell: QuickCell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rows_of([quick_cell("lr=1e-3")])
    capsys.readouterr()
    second = rows_of([quick_cell("lr=1e-3"), quick_cell("lr=2e-3")])
    said = capsys.readouterr().out
    assert "1 of 2 cells are done already" in said
    assert second[0].run_id == first[0].run_id
    forced = rows_of([quick_cell("lr=1e-3", "force=true")])
    assert forced[0].run_id != first[0].run_id
    assert forced[0].metrics["val_nll"] == first[0].metrics["val_nll"]
    cell = quick_cell("lr=1e-3")
    store, (ready,) = Store(cell.tracking.store, cell.study), prepare([cell])
    assert isinstance(ready, ReadyCell)
    for asked_one_by_one in (1, 0):
        monkeypatch.setattr("ftmatrix.store.tracking.ASKED_ONE_BY_ONE", asked_one_by_one)
        assert store.finished([ready]) == {ready.fingerprint: forced[0].run_id}
    assert [row.run_id for row in store.newest(1)] == [forced[0].run_id]


def test_a_cell_that_is_done_runs_again_for_its_weights(quick_cell: QuickCell) -> None:
    (first,) = rows_of([quick_cell("lr=1e-3")])
    (kept,) = rows_of([quick_cell("lr=1e-3", "save_model=true")])
    assert kept.run_id != first.run_id
    assert rows_of([quick_cell("lr=1e-3", "save_model=true")])[0].run_id == kept.run_id
    cell = quick_cell()
    assert len(Store(cell.tracking.store, cell.study).cells()) == 1  # one seed is one observation


def test_a_cell_that_stands_twice_in_the_grid_runs_once(
    quick_cell: QuickCell, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of([quick_cell("lr=1e-3"), quick_cell("lr=1e-3")])
    assert rows[0] == rows[1]
    said = capsys.readouterr().out
    assert "[1/1]" in said
    assert sum(line.split()[:2] == ["pocket-1m", "full"] for line in said.splitlines()) == 1


def test_what_else_differs_between_cells_has_a_column(
    quick_cell: QuickCell, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_of([quick_cell("method=lora", f"method.r={rank}") for rank in (2, 4)])
    said = capsys.readouterr().out
    assert "method.r=2" in said
    assert "method.r=4" in said


def test_divergence_is_a_result(quick_cell: QuickCell, model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(model_folders["gemma"], tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    cell = quick_cell("model=local", f"model.path={folder}")
    (row,) = rows_of([cell])
    assert (row.outcome, row.stability) == (Outcome.COMPLETED, "diverged")
    assert client(cell).get_run(row.run_id).data.tags["stability.trigger"] == "loss=nan at step 0"
    assert row.metrics["accuracy"] == 0
    assert math.isnan(row.metrics["val_nll"])


def test_what_users_type_is_no_markup(
    quick_cell: QuickCell, model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model_folders["gemma"], tmp_path / "odd [v2] [x]")
    cell = quick_cell("model=local", "model.path=somewhere")
    cell.model.path = str(folder)
    rows_of([cell])
    assert capsys.readouterr().out.count("odd [v2] [x]") >= 3


def test_a_folder_that_cant_be_written_is_a_row(quick_cell: QuickCell, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where the folder should be")
    (row,) = rows_of([quick_cell("lr=1e-3")])
    assert row.outcome is Outcome.CRASHED
    assert "while starting" in (row.reason or "")


@pytest.mark.slow
def test_losses_dont_depend_on_the_process_or_on_what_runs_beside(quick_cell: QuickCell) -> None:
    cells = [quick_cell(f"method={method}", f"lr={lr}") for method in ("full", "qlora") for lr in ("1e-3", "2e-3")]
    alone = [losses(cell, row) for cell, row in zip(cells, rows_of(cells, n_jobs=1), strict=True)]
    forced = [quick_cell(f"method={cell.method.name}", f"lr={cell.lr}", "force=true") for cell in cells]
    beside = [losses(cell, row) for cell, row in zip(forced, rows_of(forced, n_jobs=3), strict=True)]
    assert alone == beside


@pytest.mark.slow
def test_peak_memory_doesnt_depend_on_order_or_on_what_runs_beside(quick_cell: QuickCell) -> None:
    def peak(rows: list[Row], row: int) -> float:
        return rows[row].metrics["peak_bytes_train"]

    small, large = ("model=pocket-4m", "lr=1e-3"), ("model=pocket-4m", "lr=1e-3", "training.batch_size=64")
    first = rows_of([quick_cell(*small), quick_cell(*large)], n_jobs=1)
    after = rows_of([quick_cell(*large, "force=true"), quick_cell(*small, "force=true")], n_jobs=2)
    assert peak(first, 1) > 1.05 * peak(first, 0)
    assert peak(first, 0) == pytest.approx(peak(after, 1), rel=0.05)
    assert peak(first, 1) == pytest.approx(peak(after, 0), rel=0.05)


def when_it(phase: Phase, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Do something to the process of the cell with rate 2e-3 as it enters a phase."""

    class Watched(CellProcess):
        def receive(self) -> Event:
            event = super().receive()
            if event == Began(phase) and self.ready.cell.lr == 2e-3:
                assert self.pid is not None
                act(self.pid)
            return event

    monkeypatch.setattr(ftmatrix.process.scheduling, "CellProcess", Watched)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_dies_is_a_row_and_costs_no_other_cell(
    signal_number: signal.Signals, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_it(Phase.TRAIN, monkeypatch, lambda pid: os.kill(pid, signal_number))
    cells = [quick_cell(f"lr={lr}") for lr in ("1e-3", "2e-3", "3e-3")]
    rows = rows_of(cells, n_jobs=2)
    assert [row.outcome for row in rows] == [Outcome.COMPLETED, Outcome.CRASHED, Outcome.COMPLETED]
    assert signal_number.name in (rows[1].reason or "")
    assert "training" in (rows[1].reason or "")
    assert client(cells[1]).get_run(rows[1].run_id).info.status == "FAILED"
    monkeypatch.undo()
    again = rows_of(cells)
    assert [row.outcome for row in again] == [Outcome.COMPLETED] * 3
    assert [again[0].run_id, again[2].run_id] == [rows[0].run_id, rows[2].run_id]


def test_a_library_that_ends_its_process_for_want_of_memory_is_a_row_that_says_so(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = quick_cell("lr=2e-3")

    def as_rust_does(pid: int) -> None:
        (log,) = Path(cell.work_dir).glob("cells/*/files/log.txt")
        with log.open("a") as file:
            file.write("memory allocation of 4096 bytes failed\n")
        os.kill(pid, signal.SIGABRT)

    when_it(Phase.TRAIN, monkeypatch, as_rust_does)
    (row,) = rows_of([cell])
    assert row.outcome is Outcome.OUT_OF_MEMORY
    assert "memory ran out while training (memory allocation of 4096 bytes failed)" in (row.reason or "")


ROOM = 220 * 2**20
"""Enough to load the model and to score a few messages, and not to train on many."""


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
def test_an_allocation_that_fails_is_a_row_with_sizes_and_a_way_out(
    quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_it(Phase.LOAD, monkeypatch, partial(leave_address_space, room=ROOM))
    settings = ("model=pocket-4m", "training.batch_size=160", "evaluation.batch_size=2", "evaluation.forgetting=false")
    rows = rows_of([quick_cell(f"lr={lr}", *settings) for lr in ("1e-3", "2e-3", "3e-3")], n_jobs=2)
    assert [row.outcome for row in rows] == [Outcome.COMPLETED, Outcome.OUT_OF_MEMORY, Outcome.COMPLETED]
    for said in ("memory ran out while training (", "; forecast ", " were free; training.micro_batch_size="):
        assert said in str(rows[1].reason)


def test_the_kernels_kill_for_want_of_memory_is_a_row_that_says_so(
    small_group: Path, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_it(Phase.TRAIN, monkeypatch, lambda pid: (small_group / "cgroup.procs").write_text(str(pid)))
    rows = rows_of([quick_cell(f"lr={lr}", "training.batch_size=48") for lr in ("1e-3", "2e-3", "3e-3")], n_jobs=2)
    assert [row.outcome for row in rows] == [Outcome.COMPLETED, Outcome.OUT_OF_MEMORY, Outcome.COMPLETED]
    assert str(rows[1].reason).startswith("memory ran out while training (the kernel killed the process); forecast ")


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 16 MiB, where this system lets the tests make one (Linux, as root)."""
    two = GROUPS / "cgroup.controllers"
    group = (GROUPS if two.exists() else GROUPS / "memory") / f"ftmatrix-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if two.exists() else "memory.limit_in_bytes")).write_text(str(16 * 2**20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory control group can be made here: {error}")
    yield group
    group.rmdir()


def test_an_unreachable_model_and_bad_data_are_rows_beside_the_good_ones(
    quick_cell: QuickCell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        quick_cell("lr=1e-3"),
        quick_cell("model=local", f"model.path={tmp_path / 'nothing'}"),
        quick_cell(f"data.path={tmp_path / 'nowhere'}"),
    ]
    rows = rows_of(cells)
    assert [row.outcome for row in rows] == [Outcome.COMPLETED, Outcome.MISSING_MODEL, Outcome.BAD_DATA]
    said = capsys.readouterr().out
    assert f"{tmp_path / 'nothing'} is no folder" in said
    assert "no such folder" in said
    assert {client(cells[0]).get_run(row.run_id).info.status for row in rows[1:]} == {"FAILED"}


def test_a_plan_shows_every_cell_and_runs_none(quick_cell: QuickCell, capsys: pytest.CaptureFixture[str]) -> None:
    rows_of([quick_cell("lr=1e-3")])
    capsys.readouterr()
    cells = [quick_cell("plan=true", lr) for lr in ("lr=1e-3", "lr=2e-3")]
    cells.append(quick_cell("plan=true", "model=local", "model.path=/no/such"))
    assert sweep(cells) == [None, None, None]
    said = capsys.readouterr().out
    assert "done (run" in said
    assert "missing model" in said
    store = client(cells[0])
    (experiment,) = store.search_experiments(filter_string="name = 'ftmatrix'")
    assert len(store.search_runs([experiment.experiment_id], "tags.kind = 'cell'")) == 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_saved_weights_load_again_and_answer_alike(method: str, quick_cell: QuickCell, tmp_path: Path) -> None:
    from peft import PeftModel

    from ftmatrix.data import Message
    from ftmatrix.lm import Framer, Framing
    from ftmatrix.models import PACKAGED

    cell = quick_cell(f"method={method}", "lr=3e-3", "save_model=true")
    (row,) = rows_of([cell])
    folder = client(cell).download_artifacts(row.run_id, "model", str(tmp_path))
    model: Any
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        base = AutoModelForCausalLM.from_pretrained(PACKAGED / "pocket-1m", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder)
    predictions = pandas.read_csv(client(cell).download_artifacts(row.run_id, "predictions.csv", str(tmp_path)))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    framer = Framer(Framing(), tokenizer, sorted(set(predictions["label"])))
    for text, label, nll in predictions[["text", "label", "label_nll"]].head(5).itertuples(index=False):
        (example,) = framer.frame([Message(text, label)])
        ids = torch.tensor([[*example.prompt, *example.label]])
        labels = ids.clone()
        labels[0, : len(example.prompt)] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss
        assert loss.item() == pytest.approx(nll, rel=1e-3)


def test_cells_of_different_studies_are_no_sweep(quick_cell: QuickCell) -> None:
    with pytest.raises(ConfigError, match="study differs between the cells"):
        sweep([quick_cell("study=a"), quick_cell("study=b")])
    with pytest.raises(ConfigError, match="n_jobs=0: must be at least 1"):
        sweep([quick_cell()], n_jobs=0)

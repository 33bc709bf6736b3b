"""The plan: what fits, what doesn't and what would, how long it takes, and how much runs side by side."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from rows import row

from ftmatrix.errors import ConfigError
from ftmatrix.forecast import Forecaster, advise, with_advice
from ftmatrix.forecast.forecaster import largest_batch
from ftmatrix.forecast.shadow import BatchShape
from ftmatrix.lm import Training
from ftmatrix.machine import Card, Device, usable_cores
from ftmatrix.machine.accelerators import PROCESS_BYTES
from ftmatrix.records import CellResult, Forecast, MemoryParts, Outcome, Phase
from ftmatrix.spec import Cell, FailedCell, ReadyCell, UnfetchedCell, parse_bytes, prepare
from ftmatrix.store import Store
from ftmatrix.sweep import plan, sweep
from ftmatrix.sweep.plan_table import distinctions, plan_reasons, plan_table, plan_totals
from ftmatrix.sweep.planning import Clock, Planned, pack, side_by_side
from ftmatrix.text import duration

QuickCell = Callable[..., Cell]
GIB = 2**30


def ready(cell: Cell, *, free_bytes: int | None = None, peak_bytes: int | None = None) -> ReadyCell:
    (found,) = prepare([cell])
    assert isinstance(found, ReadyCell)
    accelerator = replace(found.accelerator, free_bytes=free_bytes or found.accelerator.free_bytes)
    forecast = Forecast(peak_bytes, MemoryParts(1, 1, 1)) if peak_bytes else None
    return replace(found, accelerator=accelerator, forecast=forecast)


def with_free(cell: ReadyCell, free_bytes: int) -> ReadyCell:
    return replace(cell, accelerator=replace(cell.accelerator, free_bytes=free_bytes))


def test_the_largest_batch_is_one_that_the_seeds_order_comes_to() -> None:
    lengths = [(10, 2)] * 15 + [(50, 3)] + [(20, 2)] * 4
    assert largest_batch(lengths, Training(epochs=3, batch_size=16), 0, None).length == 50
    small = largest_batch(lengths, Training(epochs=3, batch_size=16, micro_batch_size=4), 0, None)
    assert (small.rows, small.length) == (4, 50)
    assert largest_batch([(10, 2)] * 5, Training(epochs=1, batch_size=16), 0, None) == BatchShape(5, 10, 10)


def test_a_forecast_is_found_once_and_kept(
    quick_cell: QuickCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [ready(quick_cell(f"lr={lr}")) for lr in ("1e-3", "2e-3")]
    first = Forecaster(tmp_path).forecast(cells[0])
    monkeypatch.setattr("ftmatrix.forecast.forecaster.shadow_run", None)
    assert Forecaster(tmp_path).forecast(cells[1]) == first
    assert first.peak_bytes > first.parts.weight_bytes > 0


def test_a_cell_that_wont_fit_is_left_out_with_what_would_fit(
    quick_cell: QuickCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ready(quick_cell("lr=1e-3"))
    forecaster = Forecaster(tmp_path / "forecasts")
    peak = forecaster.forecast(one).peak_bytes
    advice = advise(with_free(one, peak + PROCESS_BYTES - 1), [Phase.TRAIN], forecaster)
    assert advice.startswith("training.micro_batch_size=8 would take ")
    hopeless = advise(with_free(one, PROCESS_BYTES), [Phase.TRAIN], forecaster)
    assert hopeless.startswith("neither smaller batches at once nor gradient checkpointing")

    monkeypatch.setattr("ftmatrix.machine.host.free_bytes", lambda: peak + PROCESS_BYTES - 1)
    cells = [quick_cell("lr=1e-3"), quick_cell("lr=1e-3", "fit_check=false")]
    store = Store(str(cells[0].tracking.uri), "ftmatrix")
    left_out, tried = plan(cells, store)
    assert isinstance(left_out.prepared, FailedCell)
    assert left_out.prepared.result.outcome is Outcome.WONT_FIT
    for said in ("training needs about", "are free", "training.micro_batch_size=8", "fit_check=false"):
        assert said in str(left_out.reason)
    assert left_out.action == "won't fit"
    assert tried.runs


def test_running_out_of_memory_is_told_with_sizes_and_a_way_out(quick_cell: QuickCell, tmp_path: Path) -> None:
    one = ready(quick_cell("lr=1e-3"), free_bytes=20 * GIB)
    forecast = Forecaster(tmp_path).forecast(one)
    died = CellResult(Outcome.OUT_OF_MEMORY, "memory ran out while training (no more)", Phase.TRAIN, forecast=forecast)
    reason = with_advice(replace(one, forecast=forecast), died).reason
    assert reason is not None
    assert reason.startswith("memory ran out while training (no more); forecast ")
    assert "20.0 GiB were free; training.micro_batch_size=8 would take" in reason
    fine = CellResult(Outcome.CRASHED, "no")
    assert with_advice(one, fine) == fine


def test_a_card_that_isnt_here_can_be_planned_for(quick_cell: QuickCell) -> None:
    cells = [quick_cell("plan=true", f"device_memory={size}") for size in ("24GiB", "620MiB")]
    fits, tight = plan(cells, Store(str(cells[0].tracking.uri), "ftmatrix"), fetch=False)
    assert isinstance(fits.prepared, ReadyCell)
    assert fits.prepared.accelerator.device is Device.cuda
    assert fits.prepared.precision.value == "mixed"
    assert fits.forecast is not None
    assert isinstance(tight.prepared, FailedCell)


def test_a_plan_needs_no_download(quick_cell: QuickCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-hub"))
    here = ("plan=true", "device_memory=24GiB")
    cells = [
        quick_cell(*here, "model=smollm2-135m", "data=banking77", "data.path=null"),  # neither model nor data
        quick_cell(*here, "model=smollm2-135m"),  # data, no tokenizer
        quick_cell(*here, "model=smollm2-135m", "data=banking77", "data.path=null", "framing.max_length=32"),
        quick_cell(*here, "model=gemma3-270m", "method=qlora"),
        quick_cell(*here, "model=hub", "model.hub_id=no/body"),  # not even an architecture
        quick_cell("plan=true", "device_memory=650MiB", "model=smollm2-135m"),  # not even its weights
        quick_cell("plan=true", "device_memory=2750MiB", "model=smollm2-135m"),
    ]
    planned = plan(cells, Store(str(cells[0].tracking.uri), "ftmatrix"), fetch=False)
    *unfetched, tight, close = planned
    assert all(isinstance(item.prepared, UnfetchedCell) and item.runs for item in unfetched)
    peaks = [item.forecast.peak_bytes if item.forecast else 0 for item in unfetched]
    assert peaks[0] > peaks[1] > 4 * 4 * 134_515_008  # the messages that are here are shorter than 128 tokens
    assert peaks[0] > peaks[2]
    assert [item.peak[:2] for item in unfetched] == ["≤ ", "≤ ", "≤ ", "≤ ", "—"]
    *willing, wont, may_not = (item.action for item in planned)
    assert willing == [*["fetch and run"] * 3, "fetch (gated) and run", "fetch and run"]
    assert (wont, may_not) == ("won't fit", "may not fit")
    assert "model HuggingFaceTB/SmolLM2-135M at revision main isn't in the cache" in str(unfetched[1].reason)
    assert "dataset PolyAI/banking77" in str(unfetched[0].reason)
    assert "training needs about" in str(tight.reason)
    assert str(close.reason).startswith("training needs at most")
    assert "isn't in the cache" in str(close.reason)
    reasons = plan_reasons(planned)
    assert reasons[1].startswith("fetch and run (full smollm2-135m lr=0.001 seed=0): model=smollm2-135m: ")
    assert (
        plan_totals(planned, 1)[0] == "7 cells: 4 fetch and run, 1 fetch (gated) and run, 1 won't fit, 1 may not fit."
    )
    assert plan_totals(planned, 1)[-1].startswith("≤: a bound")


@pytest.mark.parametrize(
    ("text", "count"), [("24GiB", 24 * GIB), ("24GB", 24 * 10**9), ("512 MiB", 512 * 2**20), ("1.5g", 1.5e9)]
)
def test_sizes_are_read_as_people_write_them(text: str, count: float) -> None:
    assert parse_bytes(text, "device_memory") == count


@pytest.mark.parametrize("text", ["24", "many", "-1GiB", "0GiB", "24 parsecs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write a size as 24GiB"):
        parse_bytes(text, "device_memory")


def test_cells_are_packed_by_cores_and_memory(quick_cell: QuickCell) -> None:
    cells = [
        ready(quick_cell(f"lr={lr}"), free_bytes=8 * GIB, peak_bytes=2 * GIB) for lr in ("1e-3", "2e-3", "3e-3", "4e-3")
    ]
    assert pack(cells, cores=2) == 2
    assert pack(cells, cores=16) == 3  # 2 GiB and the reserve each, in 8 GiB
    assert pack([replace(cell, threads=8) for cell in cells], cores=16) == 2
    assert pack(cells[:1], cores=16) == 1
    assert pack([], cores=16) == 1
    planned = [Planned(cell) for cell in cells]
    assert side_by_side(planned, None) == min(3, usable_cores())
    assert side_by_side(planned, 7) == 7


@pytest.mark.parametrize(
    ("cards", "devices", "jobs"), [(0, 1, 1), (1, 1, 1), (3, 1, 3), (3, 2, 1), (8, 1, 4), (8, 2, 4)]
)
def test_a_cell_has_its_own_cards(quick_cell: QuickCell, cards: int, devices: int, jobs: int) -> None:
    there = tuple(Card(str(index), 8 * GIB) for index in range(cards))
    cells = [ready(quick_cell(f"lr={lr}"), peak_bytes=GIB) for lr in ("1e-3", "2e-3", "3e-3", "4e-3")]
    planned = [
        Planned(
            replace(
                cell,
                cell=replace(cell.cell, devices=devices),
                accelerator=replace(cell.accelerator, device=Device.cuda, cards=there),
            )
        )
        for cell in cells
    ]
    assert side_by_side(planned, None) == side_by_side(planned, "auto") == jobs
    assert side_by_side(planned, 7) == 7
    shown = [line for line in plan_totals(planned, jobs) if "free on each" in line]
    assert (f"{cards} x " in shown[0]) if cards else not shown


def test_what_cant_be_foreseen_runs_all_the_same(quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation on fake tensors")

    monkeypatch.setattr("ftmatrix.forecast.forecaster.shadow_run", fails)
    (planned,) = plan([quick_cell("lr=1e-3")], None)
    assert planned.runs
    assert planned.forecast is None
    assert planned.reason == "its peak can't be foreseen (RuntimeError: no such operation on fake tensors)"
    died = CellResult(Outcome.OUT_OF_MEMORY, "memory ran out while training", Phase.TRAIN)
    assert isinstance(planned.prepared, ReadyCell)
    assert with_advice(planned.prepared, died) == died


def test_advice_tries_every_micro_batch_and_knows_the_phase(quick_cell: QuickCell, tmp_path: Path) -> None:
    one = ready(quick_cell("lr=1e-3", "training.batch_size=15", "evaluation.forgetting=false"), free_bytes=20 * GIB)
    forecaster = Forecaster(tmp_path)
    peak = forecaster.forecast(one).peak_bytes
    advice = advise(with_free(one, peak + PROCESS_BYTES - 1), [Phase.TRAIN], forecaster)
    assert advice.startswith("training.micro_batch_size=5 would take ")
    died = CellResult(Outcome.OUT_OF_MEMORY, "memory ran out while evaluating", Phase.EVALUATE)
    reason = str(with_advice(replace(one, forecast=forecaster.forecast(one)), died).reason)
    assert re.search(r"while evaluating, 20.0 GiB were free; evaluation.batch_size=\d+ would take ", reason)
    loading = CellResult(Outcome.OUT_OF_MEMORY, "memory ran out while loading", Phase.LOAD)
    assert with_advice(one, loading) == loading


def test_an_evaluation_that_wont_fit_is_left_out_too(quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("lr=1e-3", "method=lora", "training.micro_batch_size=1", "evaluation.forgetting=false")
    (alone,) = plan([quick_cell(*settings, "evaluation.batch_size=1")], None)
    (many,) = plan([quick_cell(*settings)], None)
    assert alone.forecast is not None
    assert many.forecast is not None
    assert many.forecast.evaluate_bytes is not None
    assert many.forecast.evaluate_bytes > many.forecast.peak_bytes == alone.forecast.peak_bytes
    assert many.forecast.most_bytes == many.forecast.evaluate_bytes
    between = (many.forecast.evaluate_bytes + many.forecast.peak_bytes) // 2 + PROCESS_BYTES
    monkeypatch.setattr("ftmatrix.machine.host.free_bytes", lambda: between)
    (left_out,) = plan([quick_cell(*settings)], None)
    assert str(left_out.reason).startswith("evaluating needs about ")
    assert "; evaluation.batch_size=" in str(left_out.reason)


def test_a_plan_says_in_what_cells_differ(quick_cell: QuickCell) -> None:
    cells = [quick_cell("lr=1e-3", f"training.batch_size={size}") for size in (8, 16)]
    assert distinctions([*cells, quick_cell("method=lora", "lr=1e-3", "seed=4")]) == [
        "training.batch_size=8",
        "training.batch_size=16",
        "training.batch_size=16",
    ]
    assert distinctions([cells[0], quick_cell("lr=2e-3", "training.batch_size=8", "seed=1")]) == ["", ""]


def test_cells_that_differ_in_their_seed_alone_share_a_row(quick_cell: QuickCell) -> None:
    cells = [quick_cell(f"lr={lr}", f"seed={seed}") for lr in ("1e-3", "2e-3") for seed in (0, 1, 2, 7)]
    table = plan_table([Planned(FailedCell(cell, CellResult(Outcome.MISSING_MODEL, "gone"))) for cell in cells])
    assert list(table.columns[2].cells) == [Text("0.001"), Text("0.002")]
    assert list(table.columns[3].cells) == [Text("0-2, 7")] * 2


def test_a_plan_makes_no_store_and_needs_none(
    quick_cell: QuickCell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri in (f"sqlite:///{tmp_path / 'none.db'}", "http://127.0.0.1:9"):
        sweep([quick_cell("plan=true", "lr=1e-3", f"tracking.uri={uri}")])
        assert "No finished cells to go by" in capsys.readouterr().out
    assert not (tmp_path / "none.db").exists()


def test_time_is_told_by_finished_cells(quick_cell: QuickCell) -> None:
    cell = ready(quick_cell("lr=1e-3"))

    def finished(seconds: float, **changed: Any) -> Any:
        metrics = {"parameters": cell.checkpoint.parameters, "steps": cell.steps, "seconds_train": seconds}
        facts = {"device": cell.accelerator.name}
        settings = {"training.batch_size": "16"}
        axes = {"model": "pocket-1m", "data": cell.cell.data.title} | changed
        return row("full", 1e-3, 0, facts=facts, settings=settings, **axes, **metrics)

    assert Clock([]).seconds(cell) is None
    assert Clock([finished(30.0)]).seconds(cell) == pytest.approx(30.0)
    assert Clock([finished(30.0), finished(99.0, data="other")]).seconds(cell) == pytest.approx(30.0)
    assert Clock([finished(99.0, model="pocket-4m")]).seconds(cell) == pytest.approx(99.0)  # by work a second
    lines = plan_totals([Planned(cell, seconds=30.0), Planned(cell, seconds=100.0), Planned(cell, "abcdefgh")], 2)
    assert lines[0] == "3 cells: 2 run, 1 done."
    assert lines[1].startswith("About 2 min of work; 2 min with 2 side by side. Longest: full pocket-1m lr=0.001")
    assert [duration(value) for value in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]

"""`ftmatrix doctor`: what is here, and whether cells on it come to what they should."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ftmatrix.cli import run
from ftmatrix.doctor import State, examine, prove
from ftmatrix.doctor.measures import Measured
from ftmatrix.doctor.proof import CURVES, _curve, _measured, _peaks, _same, _starved
from ftmatrix.doctor.subjects import GEMMA, METHODS, POCKET, cells_of
from ftmatrix.doctor.trials import Trial, run_together
from ftmatrix.errors import UnsupportedError
from ftmatrix.records import CellResult, Outcome, PhasePeak, Step
from ftmatrix.spec import Cell, ReadyCell
from ftmatrix.sweep import plan

QuickCell = Callable[..., Cell]


def trial(*losses: float, notes: tuple[str, ...] = (), outcome: Outcome = Outcome.COMPLETED) -> Trial:
    steps = tuple(Step(index, 1e-3, loss, 1.0, 10, 5, 0.1) for index, loss in enumerate(losses))
    return Trial(CellResult(outcome, "why", notes=notes), steps, 3.0)


def forecast_cell(cell: Cell) -> ReadyCell:
    (planned,) = plan([cell], None)
    assert isinstance(planned.prepared, ReadyCell)
    return planned.prepared


def test_it_says_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    for said in ("device=cpu", "method=qlora", "runs on cpu", "torch 2.", "store", "Nothing is off."):
        assert said in shown
    told = json.loads((tmp_path / "reports" / "doctor.json").read_text())["here"]
    assert {"subject": "method=full", "found": "runs on cpu", "state": "OK", "figures": {}} in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports"]  # it changes nothing else


def test_what_is_off_is_said_and_is_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert run(["doctor", "--json"]) == 1
    shown = capsys.readouterr().out
    assert "secret" not in shown
    (store,) = [finding for finding in json.loads(shown)["here"] if finding["state"] == "off"]
    assert store["subject"] == "store"
    assert "no MLflow server answers there" in store["found"]


def test_a_device_that_is_there_and_cant_start_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise UnsupportedError("device=cuda can't be started: CUDA driver version is insufficient")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("ftmatrix.machine.discovery.ask_child", fails)
    monkeypatch.setattr("ftmatrix.doctor.machine._methods", list)
    (off,) = [finding for finding in examine(tmp_path) if finding.state is State.OFF]
    assert off.subject == "device=cuda"
    assert "insufficient" in off.found


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--proof"]) == 2
    assert "doctor --proof: no such option; did you mean '--prove'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "state"),
    [
        ((2.0, 1.0, 0.5), State.OK),
        ((2.001, 1.01, 0.505), State.OK),
        ((2.01, 1.0, 0.5), State.OFF),  # before anything was trained
        ((2.0, 1.0, 0.55), State.OFF),
        ((2.0, 1.0), State.OFF),
    ],
)
def test_a_curve_is_held_against_the_recorded_one(losses: tuple[float, ...], state: State) -> None:
    assert _curve("full", trial(*losses), [2.0, 1.0, 0.5]).state is state


def test_every_method_has_a_recorded_curve() -> None:
    curves = json.loads(CURVES.read_text())
    assert set(curves) == {POCKET.model, GEMMA.model}
    for of_model in curves.values():
        assert set(of_model) == set(METHODS)
        assert all(curve[-1] < curve[0] for curve in of_model.values())


def test_the_same_cell_has_to_come_to_the_same_losses() -> None:
    first = [trial(2.0, 1.0)]
    assert _same("twice", first, [trial(2.0, 1.0)]).state is State.OK
    assert _same("twice", first, [trial(2.0, 1.0001)]).state is State.OFF
    noted = trial(2.0, 1.0001, notes=("the same seed may give another result: scatter isn't deterministic on cuda",))
    assert _same("twice", first, [noted]).state is State.NOTED
    assert _same("twice", first, [trial(outcome=Outcome.CRASHED)]).state is State.OFF


def test_peaks_are_held_against_their_forecasts(quick_cell: QuickCell) -> None:
    cell = forecast_cell(quick_cell("lr=1e-3"))
    assert cell.forecast is not None
    exact = replace(cell, forecast=replace(cell.forecast, is_bound=False))
    most = cell.forecast.peak_bytes
    for ready, share, state in (
        (exact, 1.09, State.OK),
        (exact, 1.11, State.OFF),
        (exact, 0.89, State.OFF),
        (cell, 0.5, State.OK),
        (cell, 1.01, State.OFF),
    ):
        peak = PhasePeak("train", int(share * most), "resident set")
        (finding,) = _peaks("full", ready, replace(trial(1.0), result=CellResult(Outcome.COMPLETED, peaks=(peak,))))
        assert finding.state is state


def test_packed_rows_have_to_agree_with_padded_ones() -> None:
    assert [finding.state for finding in _measured(Measured(1e-5, 200.0, 100.0))] == [State.OK, State.NOTED]
    assert [finding.state for finding in _measured(Measured(0.1, 200.0, 100.0))] == [State.OFF, State.NOTED]
    assert [finding.state for finding in _measured(Measured(None, 200.0, 100.0))] == [State.OFF, State.NOTED]


def test_a_cell_that_gets_too_little_memory_runs_out_of_it(quick_cell: QuickCell, tmp_path: Path) -> None:
    cell = forecast_cell(quick_cell("lr=1e-3", "model=pocket-4m", "data.limit=52"))
    (finding,) = _starved(cell, tmp_path, lambda _: None)
    assert (finding.state, finding.found.partition(":")[0]) == (State.OK, "out of memory")
    (unbounded,) = run_together([cell], tmp_path / "again")
    assert unbounded.result.outcome is Outcome.COMPLETED


@pytest.mark.slow
def test_a_cpu_is_proved(tmp_path: Path) -> None:
    told: list[str] = []
    findings = prove(tmp_path, told.append)
    assert [finding for finding in findings if finding.state is State.OFF] == []
    subjects = [finding.subject for finding in findings]
    for subject in ("full pocket-4m", "qlora pocket-4m, train peak", "one cell twice", "memory runs out", "pace"):
        assert subject in subjects
    assert len(told) >= 7


def test_the_cells_are_small_and_the_same_everywhere(tmp_path: Path) -> None:
    cells = cells_of(POCKET, tmp_path)
    assert [cell.method.name for cell in cells] == list(METHODS)
    assert {cell.training.precision.value for cell in cells} == {"fp32"}
    assert {cell.threads for cell in cells} == {1}

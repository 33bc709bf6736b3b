"""Preparation: a cell's identity holds what decides its result, and one bad cell costs no other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftmatrix.data import Message, Pocket
from ftmatrix.machine import Accelerator, Device, Precision
from ftmatrix.machine.discovery import ask_child
from ftmatrix.models import Model
from ftmatrix.records import Outcome
from ftmatrix.spec import Cell, FailedCell, ReadyCell, prepare

MakeCell = Callable[..., Cell]


@pytest.fixture
def ready(make_cell: MakeCell, cpu: Accelerator) -> Callable[..., ReadyCell]:
    """A ready cell of the packaged data and model, from overrides."""
    facts = (Model(name="pocket-1m").locate(), Pocket(name="pocket").load(), cpu, Precision.fp32, "as configured", 1)
    return lambda *overrides: ReadyCell(make_cell(*overrides), *facts)


@pytest.mark.parametrize(
    "override",
    [
        "lr=2e-3",
        "seed=1",
        "method=lora",
        "training.epochs=4",
        "training.schedule=cosine",
        "training.warmup_fraction=0",
        "framing.max_length=64",
        "data.common_intents=3",
        "evaluation.batch_size=8",
        "model.from_scratch=true",
    ],
)
def test_what_decides_a_result_is_in_the_fingerprint(override: str, ready: Callable[..., ReadyCell]) -> None:
    assert ready(override).fingerprint != ready().fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "study=other",
        "work_dir=/tmp/elsewhere",
        "tracking.uri=sqlite:///other.db",
        "tracking.sweep=monday",
        "save_model=true",
        "force=true",
        "plan=true",
        "hydra.launcher.n_jobs=2",
        "data.path=/somewhere",
        "data.limit=100000",
        "device=cpu",
        "threads=1",
    ],
)
def test_what_doesnt_decide_it_is_not(override: str, ready: Callable[..., ReadyCell]) -> None:
    assert ready(override).fingerprint == ready().fingerprint


def test_content_device_precision_and_threads_are_in_the_fingerprint(ready: Callable[..., ReadyCell]) -> None:
    first = ready()
    changes: list[dict[str, Any]] = [
        {"dataset": replace(first.dataset, test=(*first.dataset.test[1:], Message("other", "pin_change")))},
        {"checkpoint": replace(first.checkpoint, revision="another")},
        {"accelerator": replace(first.accelerator, name="another processor")},
        {"accelerator": replace(first.accelerator, device=Device.cuda)},
        {"precision": Precision.bf16},
        {"threads": 2},
    ]
    assert len({first.fingerprint, *(replace(first, **change).fingerprint for change in changes)}) == 7


def test_methods_of_equal_settings_are_the_same_cell_whatever_their_name(ready: Callable[..., ReadyCell]) -> None:
    assert ready("method=qlora").fingerprint == ready("method=lora", "method.quantize=nf4").fingerprint
    assert ready("method=qlora").fingerprint != ready("method=lora").fingerprint


def test_one_bad_cell_costs_no_other(make_cell: MakeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise PermissionError("not yours\nat all")

    broken = make_cell("lr=2e-3")
    broken.model.locate = surprise  # type: ignore[method-assign, assignment]
    broken.model.revision = "broken"  # looked up apart from the good one
    good, failed = prepare([make_cell("lr=1e-3"), broken])
    assert isinstance(good, ReadyCell)
    assert isinstance(failed, FailedCell)
    assert failed.result.outcome is Outcome.CRASHED
    assert failed.result.reason == "PermissionError while preparing full pocket-1m lr=0.002 seed=0: not yours"


def test_a_cells_folder_is_the_same_in_another_directory_and_environment(
    make_cell: MakeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    (cell,) = prepare([make_cell()])
    assert isinstance(cell, ReadyCell)
    here = cell.folder
    assert here.is_relative_to(tmp_path)
    monkeypatch.chdir("/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert cell.folder == here


def test_an_unavailable_device_is_unsupported(make_cell: MakeCell) -> None:
    (failed,) = prepare([make_cell("device=xpu")])
    assert isinstance(failed, FailedCell)
    assert failed.result.outcome is Outcome.UNSUPPORTED
    assert "device=xpu isn't available on this machine; available: " in (failed.result.reason or "")


def test_a_child_tells_the_same_of_a_device(cpu: Accelerator) -> None:
    assert ask_child(Device.cpu) == [cpu]

"""Grids: the union of several, what the command line picks of them, and settings that a method doesn't have."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ftmatrix.cli import run
from ftmatrix.errors import ConfigError
from ftmatrix.spec import jobs_of
from ftmatrix.spec.grids import Job

FULL = {"method": "full", "lr": "1e-5,5e-5"}
ADAPTERS = {"method": "lora,qlora", "lr": [5e-5, 2e-4]}
SEEDS = {"seed": "0,1"}


def cells(*given: str, grids: Sequence[Mapping[str, Any]] = (FULL, ADAPTERS)) -> list[str]:
    found = [dict(word.split("=") for word in job) for job in jobs_of(SEEDS, grids, given)]
    return [f"{float(job['lr']):g} {job['method']} {job['seed']}" for job in found]


def test_a_union_has_every_grid_with_what_they_share() -> None:
    assert cells("seed=0") == [
        "1e-05 full 0", "5e-05 full 0",
        "5e-05 lora 0", "0.0002 lora 0", "5e-05 qlora 0", "0.0002 qlora 0",
    ]  # fmt: skip
    assert len(cells()) == 12


def test_without_grids_there_is_the_one_of_params_and_command() -> None:
    expected: list[Job] = [("seed=0", "lr=1"), ("seed=1", "lr=1")]
    assert jobs_of(SEEDS, (), ["lr=1"]) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["lr=5e-5"], ["5e-05 full", "5e-05 lora", "5e-05 qlora"]),
        (["lr=0.0002"], ["0.0002 lora", "0.0002 qlora"]),
        (["method=full", "lr=5e-5"], ["5e-05 full"]),
        (["method=qlora"], ["5e-05 qlora", "0.0002 qlora"]),
        (["lr=1e-5,7e-4", "method=full,lora"], ["1e-05 full", "0.0007 full", "0.0007 lora"]),
        (["method=dora"], ["1e-05 dora", "5e-05 dora", "0.0002 dora"]),
        (["method=full", "lr=2e-4"], ["0.0002 full"]),
    ],
)
def test_the_command_line_picks_what_grids_state_and_adds_what_none_does(given: list[str], expected: list[str]) -> None:
    assert [cell.removesuffix(" 0") for cell in cells(*given, "seed=0")] == expected


def test_a_cell_of_two_grids_is_one() -> None:
    assert len(cells("seed=0", grids=(FULL, FULL, {"method": "full", "lr": "5e-5,1e-4"}))) == 3


def test_values_of_yaml_are_written_as_they_would_be_typed() -> None:
    grid = {"training.max_grad_norm": [1.0, None], "model.from_scratch": [True, False]}
    assert jobs_of({}, [grid], [])[-1] == ("training.max_grad_norm=null", "model.from_scratch=False")


def test_what_is_no_grid_is_told_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"grids: method has keys of its own; write method\.r: VALUES"):
        cells(grids=[{"method": {"r": 4}}])
    with pytest.raises(ConfigError, match=r"lr=interval.*a grid needs values"):
        cells("lr=interval(1,2)")


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    assert run(["plan", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [line[1:-6] for line in lines if line and line[0] == "pocket-1m"]


def test_a_setting_is_left_out_where_the_method_lacks_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "method=full,lora", "method.r=4,64", "lr=1e-3")
    assert [line[:2] for line in found] == [["full", "0.001"], ["lora", "method.r=4"], ["lora", "method.r=64"]]


def test_grids_are_typed_on_the_command_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "grids=[{method: full, lr: 1e-4}, {method: lora, method.r: [4, 8], lr: 1e-3}]")
    assert [line[:2] for line in found] == [["full", "0.0001"], ["lora", "method.r=4"], ["lora", "method.r=8"]]


def test_a_setting_that_no_method_of_the_sweep_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "method=full", "method.r=4"]) == 2
    assert "method.r: not a setting of this method" in capsys.readouterr().err
    assert run(["plan", "method=full,lora", "method.rank=4"]) == 2
    assert "method.rank: no such setting" in capsys.readouterr().err

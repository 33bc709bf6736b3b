"""Every setting says what it is for, and what decides a result is in a cell's identity because of that alone."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import pytest

from ftmatrix.arms import METHOD_SCHEMAS, FullFineTuning
from ftmatrix.data import DATA_SCHEMAS, Pocket
from ftmatrix.machine import Accelerator, Precision
from ftmatrix.models import Model
from ftmatrix.roles import Role, declared_in, flat, plain, result
from ftmatrix.spec import Cell, ReadyCell, prepared
from ftmatrix.spec.cells import every_setting
from ftmatrix.store import parameters_of

MakeCell = Callable[..., Cell]
Ready = Callable[[Cell], ReadyCell]
METHODS, SOURCES = METHOD_SCHEMAS, DATA_SCHEMAS


@pytest.fixture
def ready(cpu: Accelerator) -> Ready:
    facts = (Model(name="pocket-1m").locate(), Pocket(name="pocket").load(), cpu, Precision.fp32, "as configured", 1)
    return lambda cell: ReadyCell(cell, *facts)


def cells(make_cell: MakeCell) -> Iterator[Cell]:
    """A cell of each kind of method, and one of each kind of data."""
    whole = replace(make_cell(), devices=2)
    yield from (replace(whole, method=method(name="a method")) for method in METHODS.values())
    yield from (replace(whole, data=source(name="a data set")) for source in SOURCES.values())


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case Enum():
            return next(member for member in type(value) if member is not value)
        case int() | float():
            return value + 1
        case str():
            return f"{value} other"
        case list():
            return [*value, "another"]
        case None:
            return 3
    raise AssertionError(value)


def with_changed(cell: Cell, key: str) -> Cell:
    part, _, name = key.rpartition(".")
    owner: Any = getattr(cell, part) if part else cell
    other: Any = replace(owner, **{name: changed(getattr(owner, name))})
    whole: dict[str, Any] = {part: other}
    return replace(cell, **whole) if part else other


def test_every_setting_has_a_role(make_cell: MakeCell) -> None:
    found = {key for cell in cells(make_cell) for key in flat(plain(cell))}
    assert found == set(every_setting())


def test_what_is_declared_to_decide_a_result_is_in_the_fingerprint_and_nothing_else(
    make_cell: MakeCell, ready: Ready
) -> None:
    tried = set()
    for cell in cells(make_cell):
        before = ready(cell).fingerprint
        for key in flat(plain(cell)):
            decides = every_setting()[key].role is Role.RESULT
            assert (ready(with_changed(cell, key)).fingerprint != before) == decides, key
            tried.add(key)
    assert tried == set(every_setting())


def test_a_setting_without_a_role_is_refused() -> None:
    @dataclass
    class Wider(Model):
        temperature: float = 1.0

    with pytest.raises(TypeError, match="temperature has no role"):
        declared_in(Wider)


def test_a_new_setting_tells_cells_apart_and_leaves_recorded_ones_valid(make_cell: MakeCell, ready: Ready) -> None:
    @dataclass
    class Wider(Model):
        layers: int = result(0, added=True)

    cell = make_cell()
    model = {entry.name: getattr(cell.model, entry.name) for entry in dataclasses.fields(Model)}
    prints = [ready(replace(cell, model=Wider(**model, layers=layers))).fingerprint for layers in (0, 1, 2)]
    assert prints[0] == ready(cell).fingerprint
    assert len(set(prints)) == 3


def test_a_fingerprint_that_was_recorded_is_still_the_cells(
    make_cell: MakeCell, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made before settings declared their roles. Another means that finished cells run again: is that wanted?"""
    monkeypatch.setattr(prepared, "versions", lambda _: {"torch": "2.13.0"})
    monkeypatch.setattr(prepared, "RESULT_VERSION", 7)
    there = ready(make_cell("lr=1e-3"))
    there = replace(there, accelerator=replace(there.accelerator, name="a processor"))
    there = replace(
        there,
        dataset=replace(there.dataset, test=there.dataset.test[:1]),
        checkpoint=replace(there.checkpoint, revision="one"),
    )
    assert isinstance(there.cell.method, FullFineTuning)
    assert there.fingerprint == "23f70bbc30fe8ca2"
    assert replace(there, cell=make_cell("lr=1e-3", "framing.end='.'", "devices=2")).fingerprint == "281f6d0629a5cbf3"


def test_runs_record_what_decides_and_no_folder(make_cell: MakeCell) -> None:
    recorded = set(parameters_of(make_cell()))
    assert {"lr", "framing.template", "training.precision", "data.limit", "model.hub_id", "threads"} <= recorded
    assert not {"work_dir", "data.path", "model.path", "tracking.uri", "plan", "quiet"} & recorded

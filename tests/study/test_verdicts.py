"""Verdicts of real runs, and of records that were judged by older rules."""

import dataclasses
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from ftmatrix.records import Row, Stability, Verdict, to_json
from ftmatrix.spec import Cell
from ftmatrix.store import Store
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]


@pytest.fixture
def judged(quick_cell: QuickCell) -> tuple[Cell, dict[str, Row]]:
    """A rate that is far too low, and one that is far too high."""
    more = ("training.epochs=6", "data.validation_fraction=0.4")  # of ten messages four may be right by chance
    cells = [quick_cell("method=lora", f"lr={lr}", *more) for lr in ("1e-6", "0.3")]
    rows = sweep(cells, n_jobs=1)
    return cells[0], {f"{row.lr:g}": row for row in rows if row is not None}


def test_too_low_a_rate_is_kept_apart_from_a_broken_run(judged: tuple[Cell, dict[str, Row]]) -> None:
    cell, rows = judged
    assert {lr: row.stability for lr, row in rows.items()} == {"1e-06": "not_learned", "0.3": "collapsed"}
    call_both_collapsed(cell, rows)
    store = Store(str(cell.tracking.uri), cell.study, create=False)
    assert {f"{row.lr:g}": row.stability for row in store.cells()} == {"1e-06": "not_learned", "0.3": "collapsed"}
    (low,) = [row for row in store.cells() if row.lr < 1e-3]
    found = store.result(low).stability
    assert found is not None
    assert found.verdict is Verdict.NOT_LEARNED


def test_a_verdict_of_a_small_last_batch_is_judged_anew(judged: tuple[Cell, dict[str, Row]]) -> None:
    """What was called a spike because an epoch's last batch has fewer messages."""
    cell, rows = judged
    store = Store(str(cell.tracking.uri), cell.study, create=False)
    row = next(iter(rows.values()))
    today = store.result(row)
    last = int(row.metrics["steps"]) - 1
    old = Stability(Verdict.SPIKY, last, "grad_norm", 17.3)
    client: MlflowClient = store.client
    client.log_text(row.run_id, to_json(dataclasses.replace(today, stability=old)), "result.json")
    client.set_tag(row.run_id, "stability", "spiky")
    client.set_tag(row.run_id, "stability.trigger", f"grad_norm=17.3 at step {last}")
    (again,) = store.rows([row.run_id])
    assert today.stability is not None
    assert again.stability == today.stability.verdict.value
    assert store.result(again).stability == today.stability


def call_both_collapsed(cell: Cell, rows: dict[str, Row]) -> None:
    """Make the records what they were when a low accuracy alone was called a collapse."""
    store = Store(str(cell.tracking.uri), cell.study, create=False)
    client: MlflowClient = store.client
    for row in rows.values():
        old = dataclasses.replace(store.result(row), stability=Stability(Verdict.COLLAPSED, None, "accuracy", 0.0))
        client.log_text(row.run_id, to_json(old), "result.json")
        client.set_tag(row.run_id, "stability", "collapsed")
        client.set_tag(row.run_id, "stability.trigger", "accuracy=0 at the end")

"""The comparison table: it fits, it names failures, and it knows the best."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ftmatrix.records import Outcome, Row, best_of
from ftmatrix.reporting import as_csv, as_text, failures, fitting_table
from ftmatrix.reporting.table import COLUMNS
from ftmatrix.study import differing_settings


def row(method: str, lr: float, accuracy: float | None, **settings: str) -> Row:
    outcome, reason = (Outcome.MISSING_MODEL, "not there") if accuracy is None else (Outcome.COMPLETED, None)
    metrics = {} if accuracy is None else {column.metric: accuracy for column in COLUMNS}
    stability = None if accuracy is None else "stable"
    return Row(
        f"run-{method}-{lr}", method, "pocket-1m", "pocket", lr, 0, outcome, reason, stability, metrics, settings
    )


ROWS = [row("lora", 1e-2, 0.5), row("full", 1e-3, 0.75), row("full", 1e-4, None), row("lora", 1e-3, None)]


def test_a_run_without_a_number_is_no_better_for_that() -> None:
    plain = row("full", 1e-3, 0.0)
    broken = replace(plain, run_id="broken", metrics=plain.metrics | {"val_accuracy": 0.0, "val_nll": float("nan")})
    plain = replace(plain, metrics=plain.metrics | {"val_accuracy": 0.0, "val_nll": 1.0})
    assert best_of([broken, plain]) is plain
    assert best_of([plain, broken]) is plain
    assert best_of([]) is None


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_figure_is_whole_however_narrow_the_terminal(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width)
    console.print(fitting_table(ROWS, title="study", console=console))
    said = file.getvalue()
    assert "…" not in said
    assert "75.0" in said
    assert max(map(len, said.splitlines())) <= width


def test_rows_stand_in_the_order_in_which_they_are_compared() -> None:
    lines = [line.split() for line in as_text(ROWS, title="study").splitlines() if "pocket-1m" in line]
    assert [(line[1], line[2]) for line in lines] == [
        ("full", "0.0001"), ("full", "0.001"), ("lora", "0.001"), ("lora", "0.01"),
    ]  # fmt: skip


def test_failures_are_counted_by_reason() -> None:
    assert failures(ROWS) == ["not there (2 cells)"]


def test_unknown_is_never_nought() -> None:
    (line,) = [line for line in as_text(ROWS, title="study").splitlines() if "0.0001" in line]
    assert line.split()[4:] == ["missing", "model", *["—"] * len(COLUMNS)]
    assert ",,," in as_csv(ROWS).splitlines()[1]


def test_settings_that_differ_within_a_method_are_found() -> None:
    rows = [row("lora", 1e-3, 0.5, r="4", alpha="8"), row("lora", 1e-3, 0.5, r="8", alpha="8"), row("full", 1e-3, 0.5)]
    assert differing_settings(rows) == ["r"]


def test_a_csv_runs_nothing_in_a_spreadsheet() -> None:
    risky = replace(row("full", 1e-3, 0.5), model="=HYPERLINK(1)", reason="+1", method="@SUM")
    line = as_csv([risky]).splitlines()[1]
    assert "'=HYPERLINK(1)" in line
    assert "'@SUM" in line
    assert "'+1" in line

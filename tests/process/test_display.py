"""What a person sees of a running sweep."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from ftmatrix.process import Display, open_console
from ftmatrix.process.display import names
from ftmatrix.records import CellResult, Evaluation, Outcome, Stability, Verdict
from ftmatrix.spec import Cell, ReadyCell, prepare


def evaluation(accuracy: float) -> Evaluation:
    return Evaluation("test", 100, accuracy, accuracy, accuracy, 5, 0.0, accuracy, 0.5, (), (), None, ())


def result(accuracy: float) -> CellResult:
    scores = evaluation(accuracy)
    return CellResult(Outcome.COMPLETED, stability=Stability(Verdict.SPIKY), validation=scores, test=scores)


@pytest.fixture
def ready(quick_cell: Callable[..., Cell]) -> list[ReadyCell]:
    prepared = prepare([quick_cell(f"lr={lr}") for lr in ("1e-3", "2e-3", "3e-3")])
    return [cell for cell in prepared if isinstance(cell, ReadyCell)]


def shown(ready: list[ReadyCell], *, terminal: bool, quiet: bool = False) -> str:
    file = io.StringIO()
    display = Display(Console(file=file, force_terminal=terminal, width=200), ready, quiet=quiet)
    with display.live():
        for cell, accuracy in zip(ready, (0.5, 0.9, 0.7), strict=True):
            display.began(cell)
            display.ended(cell, result(accuracy))
        display.tell("MLflow is away")
    return file.getvalue()


def test_without_a_terminal_a_line_says_that_a_cell_began_and_how_it_ended(ready: list[ReadyCell]) -> None:
    lines = shown(ready, terminal=False).splitlines()
    assert lines[:2] == ["start  full pocket-1m lr=0.001 seed=0",
                         "[1/3]  full pocket-1m lr=0.001 seed=0  spiky  accuracy 50.0%  0 s; "
                         "best 50.0%, full pocket-1m lr=0.001 seed=0; about 0 s left"]  # fmt: skip
    assert "best 90.0%, full pocket-1m lr=0.002 seed=0" in lines[3]
    assert lines[5].endswith("accuracy 70.0%  0 s")
    assert len(lines) == 7


def test_a_terminal_shows_the_best_so_far_and_the_last_verdict(ready: list[ReadyCell]) -> None:
    said = shown(ready, terminal=True)
    assert "3/3 cells  best 90.0%, full pocket-1m lr=0.002 seed=0" in said
    assert "[3/3]  full pocket-1m lr=0.003 seed=0  spiky  accuracy 70.0%" in said


def test_colours_asked_for_make_no_bars_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not open_console().is_interactive


def test_cells_of_one_title_are_told_apart_by_their_settings(quick_cell: Callable[..., Cell]) -> None:
    cells = prepare([quick_cell("lr=1e-3", f"training.batch_size={size}") for size in (16, 64)] + [quick_cell("lr=1")])
    ready = [cell for cell in cells if isinstance(cell, ReadyCell)]
    assert list(names(ready).values()) == [
        "full pocket-1m lr=0.001 seed=0 training.batch_size=16",
        "full pocket-1m lr=0.001 seed=0 training.batch_size=64",
        "full pocket-1m lr=1 seed=0",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_quiet_sweep_says_what_is_wrong_alone(ready: list[ReadyCell], terminal: bool) -> None:
    assert shown(ready, terminal=terminal, quiet=True).split("\n") == ["MLflow is away", ""]

"""What would make a cell fit into memory and keep its result."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ftmatrix.errors import UnforeseenError
from ftmatrix.forecast.forecaster import Forecaster
from ftmatrix.machine import Accelerator
from ftmatrix.records import CellResult, Forecast, Outcome, Phase
from ftmatrix.spec import Cell, ReadyCell, UnfetchedCell
from ftmatrix.text import gibibytes

HOPELESS = {
    Phase.TRAIN: "neither smaller batches at once nor gradient checkpointing would do: take another method or model",
    Phase.EVALUATE: "no smaller evaluation.batch_size would do: try evaluation.forgetting=false, or another model",
}

Change = dict[str, int | bool]
"""Settings, by their dotted names, that decide memory and time but no result."""


def fits(peak_bytes: float, accelerator: Accelerator) -> bool:
    """Whether a process with such a peak has room; unknown memory is taken to suffice."""
    free_bytes = accelerator.free_bytes
    return free_bytes is None or peak_bytes + accelerator.beside_bytes <= free_bytes


def phase_bytes(forecast: Forecast, phase: Phase) -> int:
    """The forecast peak of training or evaluation."""
    return forecast.peak_bytes if phase is Phase.TRAIN else forecast.evaluate_bytes or 0


def advise(known: ReadyCell | UnfetchedCell, phases: Sequence[Phase], forecaster: Forecaster) -> str:
    """The least changes with which these phases would fit: smaller batches at once, recomputed activations, or both."""
    changes: Change = {}
    for phase in phases:
        change = _least_change(known, phase, forecaster)
        if change is None:
            return HOPELESS[phase]
        changes |= change
    most = forecaster.forecast(replace(known, cell=_changed(known.cell, changes))).most_bytes
    named = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
    return f"{named} would take {gibibytes(most)} and give the same result"


def with_advice(ready: ReadyCell, result: CellResult) -> CellResult:
    """A result that ran out of memory, with the sizes and the change that would have made the cell fit."""
    phase, forecast, free = result.phase, ready.forecast, ready.accelerator.free_bytes
    if result.outcome is not Outcome.OUT_OF_MEMORY or phase not in (Phase.TRAIN, Phase.EVALUATE):
        return result
    if forecast is None or free is None:
        return result
    foretold = phase_bytes(forecast, phase)
    too_little = min(free, foretold + ready.accelerator.beside_bytes - 1)  # whatever was free before
    there = replace(ready, accelerator=replace(ready.accelerator, free_bytes=too_little))
    advice = advise(there, [phase], Forecaster(Path(ready.cell.work_dir) / "forecasts"))
    sizes = f"forecast {gibibytes(foretold)} while {phase.doing}, {gibibytes(free)} were free"
    return replace(result, reason=f"{result.reason}; {sizes}; {advice}")


def _least_change(known: ReadyCell | UnfetchedCell, phase: Phase, forecaster: Forecaster) -> Change | None:
    def peak(change: Change) -> float:  # infinite where the model can't take the change
        try:
            forecast = forecaster.forecast(replace(known, cell=_changed(known.cell, change)))
        except UnforeseenError:
            return math.inf
        return phase_bytes(forecast, phase)

    changes, farthest = _training_changes(known.cell) if phase is Phase.TRAIN else _evaluation_changes(known.cell)
    if not any(fits(peak(change), known.accelerator) for change in farthest):
        return None
    return next(change for change in changes if fits(peak(change), known.accelerator))


def _training_changes(cell: Cell) -> tuple[list[Change], list[Change]]:
    """Changes from the least on, and those of them that save most."""
    batch = cell.training.at_once(cell.devices)
    smaller: list[Change] = [
        {"training.micro_batch_size": size} for size in range(batch // 2, 0, -1) if batch % size == 0
    ]
    recomputed: Change = {"training.gradient_checkpointing": True}
    changes = [*smaller, recomputed, *(change | recomputed for change in smaller)]
    return changes, [*smaller[-1:], changes[-1]]


def _evaluation_changes(cell: Cell) -> tuple[list[Change], list[Change]]:
    size = cell.evaluation.batch_size
    halves: list[Change] = [{"evaluation.batch_size": size >> shift} for shift in range(1, size.bit_length())]
    return halves, halves[-1:]


def _changed(cell: Cell, change: Change) -> Cell:
    for key, value in change.items():
        section, name = key.split(".")
        cell = replace(cell, **{section: replace(getattr(cell, section), **{name: value})})
    return cell

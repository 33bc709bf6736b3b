"""What a sweep will do with every cell: run it, take it as done, or say why not; with predicted memory and time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ftmatrix.errors import FtmatrixError, UnforeseenError
from ftmatrix.forecast import Forecaster, advise, fits, phase_bytes
from ftmatrix.machine import Device, usable_cores
from ftmatrix.records import CellResult, Forecast, Outcome, Phase, Row
from ftmatrix.spec import Cell, FailedCell, Prepared, ReadyCell, UnfetchedCell, prepare
from ftmatrix.store import Store
from ftmatrix.text import UNKNOWN, gibibytes

REMEMBERED = 1000
"""Runs from whose times a cell's is expected: the latest."""


@dataclass(frozen=True)
class Planned:
    """A cell and what the sweep will do with it.

    `done_run` is the run of an earlier, complete one; `seconds` what finished cells let it expect, None where there
    are none to go by; `unforeseen` why its memory can't be told.
    """

    prepared: Prepared
    done_run: str | None = None
    seconds: float | None = None
    unforeseen: str | None = None

    @property
    def forecast(self) -> Forecast | None:
        """Peak memory that it is expected to reach."""
        return self.prepared.result.forecast if isinstance(self.prepared, FailedCell) else self.prepared.forecast

    @property
    def peak(self) -> str:
        """The forecast in words; `≤` where it is a bound: the cell is small, or not all of it is on this machine."""
        if self.forecast is None:
            return UNKNOWN
        bound = "≤ " if self.forecast.is_bound or isinstance(self.prepared, UnfetchedCell) else ""
        return f"{bound}{gibibytes(self.forecast.most_bytes)}"

    @property
    def runs(self) -> bool:
        """Whether the sweep will run the cell."""
        return not isinstance(self.prepared, FailedCell) and self.done_run is None

    @property
    def fingerprint(self) -> str:
        """The cell's identity; empty where it can't start."""
        return self.prepared.fingerprint if isinstance(self.prepared, ReadyCell) else ""

    @property
    def action(self) -> str:
        """What will happen, in a word or two."""
        match self.prepared:
            case FailedCell(result=result):
                return result.outcome.value
            case UnfetchedCell(accelerator=device, forecast=Forecast() as forecast) if not fits(
                forecast.most_bytes, device
            ):
                return "may not fit"
            case UnfetchedCell(cell=cell):
                return "fetch (gated) and run" if cell.model.gated else "fetch and run"
        return f"done (run {self.done_run[:8]})" if self.done_run else "run"

    @property
    def reason(self) -> str | None:
        """Why it doesn't simply run."""
        match self.prepared:
            case FailedCell(result=result):
                return result.reason
            case UnfetchedCell(reason=reason):
                return reason
        return f"its peak can't be foreseen ({self.unforeseen})" if self.unforeseen else None


def plan(
    cells: Sequence[Cell],
    store: Store | None,
    *,
    fetch: bool = True,
    meanwhile: Callable[[Sequence[ReadyCell]], None] | None = None,
) -> list[Planned]:
    """What a sweep over these cells would do. `fetch=False` looks for hub models in the cache only.

    Without a store no cell is done, and none can tell the time. `meanwhile` hears of the cells that may run before
    their memory is forecast, which takes seconds.
    """
    prepared = prepare(cells, fetch=fetch)
    finished = _finished(prepared, store) if store else {}
    forecaster = Forecaster(Path(cells[0].work_dir) / "forecasts")
    waiting = [item for item in prepared if isinstance(item, ReadyCell) and item.fingerprint not in finished]
    if meanwhile and waiting:
        meanwhile(waiting)
    clock = Clock(store.newest(REMEMBERED) if store and waiting else [])
    planned = []
    for item in prepared:
        done = finished.get(item.fingerprint) if isinstance(item, ReadyCell) else None
        if isinstance(item, FailedCell) or done is not None:
            planned.append(Planned(item, done))
        else:
            planned.append(_forecast(item, forecaster, clock))
    return planned


def known_here(cells: Sequence[Cell], store: Store) -> list[Planned]:
    """What this machine knows of cells that will run on others: which of them are done.

    Only of a cell whose data and model are here, and whose device is of the same kind, can that be known; the jobs of
    the others find out. Nothing is forecast: what is free there isn't known here.
    """
    prepared = prepare(cells, fetch=False)
    finished = _finished(prepared, store)
    return [Planned(item, finished.get(item.fingerprint) if isinstance(item, ReadyCell) else None) for item in prepared]


def _finished(prepared: Sequence[Prepared], store: Store) -> dict[str, str]:
    return store.finished(item for item in prepared if isinstance(item, ReadyCell) and not item.cell.force)


def _forecast(known: ReadyCell | UnfetchedCell, forecaster: Forecaster, clock: "Clock") -> Planned:
    if known.checkpoint is None:
        return Planned(known)
    seconds = clock.seconds(known) if isinstance(known, ReadyCell) else None
    try:
        forecast = forecaster.forecast(known)
    except UnforeseenError as error:
        return Planned(known, seconds=seconds, unforeseen=str(error))
    except FtmatrixError as error:
        return Planned(FailedCell(known.cell, CellResult(error.outcome, str(error))))
    if known.cell.fit_check and not fits(forecast.most_bytes, known.accelerator):
        return Planned(_refused(known, forecast, forecaster))
    return Planned(replace(known, forecast=forecast), seconds=seconds)


def _refused(
    known: ReadyCell | UnfetchedCell, forecast: Forecast, forecaster: Forecaster
) -> FailedCell | UnfetchedCell:
    """A cell that won't fit, or of which it is only known that it may not."""
    there = known.accelerator
    large = [phase for phase in (Phase.TRAIN, Phase.EVALUATE) if not fits(phase_bytes(forecast, phase), there)]
    phase = max(large, key=lambda phase: phase_bytes(forecast, phase))
    sizes = f"{gibibytes(forecast.most_bytes)} and {gibibytes(there.beside_bytes)} for the process"
    advice = advise(known, large, forecaster)
    rest = f"{gibibytes(there.free_bytes or 0)} of {there.name} are free; {advice}"
    if isinstance(known, UnfetchedCell) and fits(forecast.parts.total_bytes, there):
        reason = f"{phase.doing} needs at most {sizes}; {rest}; {known.reason}"
        return replace(known, forecast=forecast, reason=reason)
    reason = f"{phase.doing} needs about {sizes}; {rest}; fit_check=false tries it nevertheless"
    return FailedCell(known.cell, CellResult(Outcome.WONT_FIT, reason, forecast=forecast))


class Clock:
    """Expects of a cell what finished cells took, by their training's size."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [row for row in rows if row.completed]

    def seconds(self, ready: ReadyCell) -> float | None:
        """Seconds of the whole cell: as alike cells took, else by the same method's work a second on this device."""
        cell = ready.cell
        mine = (cell.method.name, ready.device)
        same = [row for row in self.rows if (row.method, row.facts.get("device")) == mine]
        alike = [row for row in same if (row.model, row.data) == (cell.model.title, cell.data.title) and _work(row)]
        work = ready.checkpoint.parameters * ready.steps * cell.training.batch_size
        rates = [_total(row) / done for row in alike or same if (done := _work(row))]
        return work * median(rates) if rates else None


def _work(row: Row) -> float | None:
    """Parameters times messages of a finished cell's training."""
    parameters, steps, batch = row.metric("parameters"), row.metric("steps"), row.settings.get("training.batch_size")
    return parameters * steps * int(batch) if parameters and steps and batch else None


def _total(row: Row) -> float:
    return sum(row.metric(f"seconds_{part}") or 0.0 for part in ("setup", "train", "evaluate"))


def side_by_side(planned: Sequence[Planned], n_jobs: int | str | None) -> int:
    """How many cells to run at once: as asked, or as many as fit on a CPU, or as there are cards for (`auto`)."""
    if isinstance(n_jobs, int):
        return n_jobs
    running = [item.prepared for item in planned if item.runs and isinstance(item.prepared, ReadyCell)]
    if all(ready.accelerator.device is Device.cpu for ready in running):
        return pack(running, usable_cores())
    on_cards = [ready for ready in running if ready.accelerator.device is not Device.cpu]
    return max(1, min(len(running), *(len(ready.accelerator.cards) // ready.cell.devices for ready in on_cards)))


def pack(cells: Sequence[ReadyCell], cores: int) -> int:
    """How many cells a CPU's cores and free memory have room for, were the largest ones to meet."""
    if not cells:
        return 1
    by_cores = cores // max(ready.threads * ready.cell.devices for ready in cells)
    free = min((ready.accelerator.free_bytes for ready in cells if ready.accelerator.free_bytes), default=None)
    sizes = ((ready.forecast.most_bytes, ready.accelerator.beside_bytes) for ready in cells if ready.forecast)
    peaks = sorted(map(sum, sizes), reverse=True)
    jobs = max(1, min(by_cores, len(cells)))
    while free is not None and jobs > 1 and sum(peaks[:jobs]) > free:
        jobs -= 1
    return jobs

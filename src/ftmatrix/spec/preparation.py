"""From typed cells to cells that can start: model found, data checked, device picked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from ftmatrix.errors import FtmatrixError, NotFetchedError, UnsupportedError, first_line
from ftmatrix.machine import divided, imagine, pick, share_of, usable_cores
from ftmatrix.models import FOUR_BITS, Checkpoint, quantized_by, settled_attention
from ftmatrix.records import CellResult, Outcome
from ftmatrix.roles import plain
from ftmatrix.spec.cells import Cell, parse_bytes
from ftmatrix.spec.places import settled_uri
from ftmatrix.spec.prepared import FailedCell, Prepared, ReadyCell, UnfetchedCell

Found = TypeVar("Found")


class Shared:
    """Finds what several cells share once; a failure is remembered and raised again."""

    def __init__(self) -> None:
        self._found: dict[str, object] = {}

    def __call__(self, find: Callable[[], Found], *key: object) -> Found:
        name = f"{key}"
        if name not in self._found:
            try:
                self._found[name] = find()
            except FtmatrixError as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, FtmatrixError):
            raise found
        return cast(Found, found)


def prepare(cells: Sequence[Cell], *, fetch: bool = True) -> list[Prepared]:
    """Prepare cells in order. Models and data sets that several cells share are found and read once.

    `fetch=False` takes the hub's models and data from the cache only; cells without them are `UnfetchedCell`s.
    """
    shared = Shared()
    prepared: list[Prepared] = []
    for cell in cells:
        try:
            prepared.append(_prepare(settled(cell), shared, fetch=fetch))
        except FtmatrixError as error:
            prepared.append(FailedCell(cell, CellResult(error.outcome, str(error))))
        except Exception as error:  # one cell's surprise must not cost the others
            reason = f"{type(error).__name__} while preparing {cell.title}: {first_line(error)}"
            prepared.append(FailedCell(cell, CellResult(Outcome.CRASHED, reason)))
    return prepared


def settled(cell: Cell) -> Cell:
    """The cell with what working directory and environment make of it here: where it runs they may be others."""
    tracking = replace(cell.tracking, uri=settled_uri(cell.tracking.store))
    return replace(cell, work_dir=str(Path(cell.work_dir).absolute()), tracking=tracking)


def _prepare(cell: Cell, shared: Shared, *, fetch: bool) -> ReadyCell | UnfetchedCell:
    if cell.device_memory is not None:
        accelerator = divided(imagine(cell.device, parse_bytes(cell.device_memory, "device_memory")), cell.devices)
    else:
        one = shared(lambda: pick(cell.device), "device", cell.device)
        accelerator = shared(lambda: share_of(one, cell.devices), "devices", cell.device, cell.devices)
    if unsupported := cell.method.unsupported_on(accelerator):
        raise UnsupportedError(f"method={cell.method.name}: {unsupported}")
    precision, reason = accelerator.suitable(cell.training.precision)
    if cell.device_memory is None and (unsupported := cell.model.unsupported_on(accelerator, precision)):
        raise UnsupportedError(f"model.attention={cell.model.attention}: {unsupported}")
    checkpoint, no_model = _fetched(lambda: shared(lambda: cell.model.locate(fetch=fetch), "model", plain(cell.model)))
    dataset, no_data = _fetched(lambda: shared(lambda: cell.data.load(fetch=fetch), "data", plain(cell.data)))
    if checkpoint is None or dataset is None:
        outline = checkpoint or shared(cell.model.architecture, "architecture", plain(cell.model))
        missing = "; ".join(filter(None, (no_model, no_data)))
        return UnfetchedCell(cell, outline, dataset, accelerator, precision, missing)
    if (by := quantized_by(checkpoint.folder)) and (by != FOUR_BITS or not cell.method.quantizes):
        way_out = "take the unquantised base" + (", or method=qlora" if by == FOUR_BITS else "")
        raise UnsupportedError(f"model={cell.model.title}: already quantised by {by}; {way_out}")
    attention = shared(
        lambda: settled_attention(checkpoint, cell.model.attention), "attention", checkpoint, cell.model.attention
    )
    return ReadyCell(
        replace(cell, model=replace(cell.model, attention=attention)),
        checkpoint,
        dataset,
        accelerator,
        precision,
        reason,
        threads=cell.threads or _threads(checkpoint, cell.devices),
    )


def _fetched(find: Callable[[], Found]) -> tuple[Found | None, str]:
    """What was found, or None and the reason why it has to be fetched first."""
    try:
        return find(), ""
    except NotFetchedError as error:
        return None, str(error)


def _threads(checkpoint: Checkpoint, processes: int) -> int:
    """More than one CPU thread costs a small model more than it gives; side by side cells use the cores better."""
    return 1 if checkpoint.is_small else max(1, usable_cores() // processes)

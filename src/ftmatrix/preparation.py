"""From typed cells to cells that can start: model found, data checked, device picked, identity known."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from ftmatrix.checkpoints import Checkpoint
from ftmatrix.config import Cell, goal_of, parse_bytes, settled_uri
from ftmatrix.data import Dataset
from ftmatrix.errors import FtmatrixError, NotFetchedError, UnsupportedError, first_line
from ftmatrix.foreign import FOUR_BITS, quantized_by
from ftmatrix.hardware import Accelerator, Device, Precision, divided, imagine, pick, share_of
from ftmatrix.host import usable_cores
from ftmatrix.methods import Method
from ftmatrix.models import settled_attention
from ftmatrix.records.measures import Forecast
from ftmatrix.records.outcomes import Outcome
from ftmatrix.records.results import CellResult
from ftmatrix.roles import identity_of, parts_of, plain

RESULT_VERSION = 7
"""Raised when a change to this program changes what a cell comes to."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class ReadyCell:
    """A cell with everything it needs, small enough to send to another process."""

    cell: Cell
    checkpoint: Checkpoint
    dataset: Dataset
    accelerator: Accelerator
    precision: Precision
    precision_reason: str
    threads: int
    forecast: Forecast | None = None
    shares_card: bool = False
    """Whether another cell may run on the same GPU meanwhile."""

    @cached_property
    def fingerprint(self) -> str:
        """The cell's identity: 16 hex digits over everything that decides its result or its measurements.

        Every setting that is declared to decide it is in, by its value or by what it came to (the content of data and
        model, the device, what "auto" is here); so are the versions of what computes.
        """
        cell = self.cell
        own, parts = identity_of(cell), {name: identity_of(getattr(cell, name)) for name, _ in parts_of(cell)}
        model, data = parts.pop("model"), parts.pop("data")
        devices, shard = own.pop("devices", 1), own.pop("shard", False)
        parts["method"]["name"] = type(cell.method).__name__
        parts["training"]["precision"] = self.precision.value
        decides = {
            **{name: values for name, values in parts.items() if values},
            "model": _placed([self.checkpoint.revision], model, "attention", "from_scratch"),
            "data": _placed([self.dataset.digest], data, "common_intents", "confusion_pair"),
            "axes": _placed([], own, "lr", "seed"),
            "device": [self.accelerator.kind, self.accelerator.name],
            "threads": self.threads if self.accelerator.device is Device.cpu else None,
            "versions": versions(cell.method),
            **({"devices": [devices, shard]} if devices > 1 else {}),
            "result_version": RESULT_VERSION,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def device(self) -> str:
        """What the cell runs on, by name."""
        name, devices = self.accelerator.name, self.cell.devices
        return name if devices == 1 else f"{devices} x {name}"

    @property
    def data_source(self) -> str:
        """Where the data came from, without this machine's folders."""
        return self.dataset.source if self.cell.data.path is None else self.cell.data.title

    @property
    def folder(self) -> Path:
        """Where the cell's process leaves its record, on its way to the store: one a cell, study and store."""
        goal = goal_of(self.cell.tracking.store, self.cell.study)
        return Path(self.cell.work_dir) / "cells" / f"{self.fingerprint}-{goal}"

    @property
    def files(self) -> Path:
        """What becomes the run's artifacts."""
        return self.folder / "files"

    @property
    def log(self) -> Path:
        """What the cell's process prints."""
        return self.files / "log.txt"

    @property
    def progress(self) -> Path:
        """Where the cell's process saves how far it came."""
        return self.folder / "progress.pt"

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.cell.training.steps(len(self.dataset.train))


@dataclass(frozen=True)
class FailedCell:
    """A cell that can't start, with the result that says why."""

    cell: Cell
    result: CellResult


@dataclass(frozen=True)
class UnfetchedCell:
    """A cell whose model or data isn't on this machine, for plans: what is known of it without a download.

    `checkpoint` may be an architecture alone; `reason` says what is missing.
    """

    cell: Cell
    checkpoint: Checkpoint | None
    dataset: Dataset | None
    accelerator: Accelerator
    precision: Precision
    reason: str
    forecast: Forecast | None = None


Prepared = ReadyCell | FailedCell | UnfetchedCell


def _placed(facts: list[Any], settings: dict[str, Any], *names: str) -> list[Any]:
    """Facts, then the settings of these names, which have had their place from the first; others behind them."""
    others = {name: value for name, value in settings.items() if name not in names}
    return [*facts, *(settings[name] for name in names), *([others] if others else [])]


def versions(method: Method) -> dict[str, str]:
    """The versions of what computes a method's cells."""
    adapters = ["peft", "bitsandbytes"] if method.trains_adapters else []
    return {name: _version(name) for name in ("torch", "transformers", *adapters)}


_version = cache(version)
"""Looked up once: it reads files."""


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

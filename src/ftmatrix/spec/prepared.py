"""Cells with all that they need to start, or with the reason why they can't; and what identifies them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftmatrix.arms import Method
from ftmatrix.data import Dataset
from ftmatrix.machine import Accelerator, Device, Precision
from ftmatrix.models import Checkpoint
from ftmatrix.records import CellResult, Forecast
from ftmatrix.roles import identity_of, parts_of
from ftmatrix.spec.cells import Cell
from ftmatrix.spec.places import goal_of

RESULT_VERSION = 7
"""Raised when a change to this program changes what a cell comes to."""


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

"""Forecasts of the cells of a sweep: what they share is found out once, and kept for the next command."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from ftmatrix.checkpoints import Checkpoint
from ftmatrix.config import Cell, plain
from ftmatrix.errors import FtmatrixError, UnforeseenError, first_line
from ftmatrix.framing import Framer
from ftmatrix.hardware import Device, Precision
from ftmatrix.memory.shadow import BatchShape, shadow_step
from ftmatrix.models import PACKAGED, load_tokenizer
from ftmatrix.preparation import ReadyCell, Shared, UnfetchedCell, versions
from ftmatrix.records import Forecast, from_json, to_json
from ftmatrix.settings import Training
from ftmatrix.training import epoch_order

FORECAST_VERSION = 2
"""Raised when a change to this program changes its forecasts."""
STAND_IN = Checkpoint(PACKAGED / "pocket-1m", "", 0)
"""Whose tokenizer counts tokens for a model without one yet: its small vocabulary makes more of a text, not fewer."""
CPU_PROCESS_BYTES = 96 * 2**20
"""What training adds to a CPU's resident set beside its tensors: libraries' pages, the heap of small blocks.

Measured between 40 and 200 MiB; `make bench ARGS=memory` shows what is left of it.
"""
LABEL_STEP = 16
"""Label tokens of a batch are rounded up to a multiple of this, so that seeds share a forecast."""
LONGEST_LABEL = 16
"""Tokens that no label of unknown data is expected to exceed."""


class Forecaster:
    """Forecasts cells. `folder` keeps what was found out, under a name made of all that decides it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shared = Shared()

    def forecast(self, known: ReadyCell | UnfetchedCell) -> Forecast:
        """Peak memory of a cell's training, from its architecture, which must be known, and its messages' lengths.

        Of a cell that isn't fetched, the most that its training may take.

        Raises:
            ModelError: the checkpoint's config or tokenizer can't be used.
            UnforeseenError: the architecture doesn't run on fake tensors.
        """
        assert known.checkpoint is not None
        tensors = self._at(known.checkpoint, known.cell, known.precision, self._shape(known.checkpoint, known))
        beside = CPU_PROCESS_BYTES if known.accelerator.device is Device.cpu else 0
        return replace(tensors, peak_bytes=tensors.peak_bytes + beside)

    def _shape(self, checkpoint: Checkpoint, known: ReadyCell | UnfetchedCell) -> BatchShape:
        cell, dataset = known.cell, known.dataset
        if dataset is None:
            rows, length = cell.training.micro_batch_size or cell.training.batch_size, cell.framing.max_length
            return BatchShape(rows, length, rows * min(length, LONGEST_LABEL))
        source = checkpoint if checkpoint.has_tokenizer else STAND_IN

        def find() -> list[tuple[int, int]]:  # tokens of each training message, and of its label within them
            framer = Framer(cell.framing, load_tokenizer(source), dataset.labels)
            return [(len(example), len(example.label)) for example in framer.frame(dataset.train)]

        messages = (source.folder, dataset.digest, plain(cell.framing))
        lengths = self._shared(find, *messages)
        largest = partial(largest_batch, lengths, cell.training, cell.seed)
        shape = self._shared(largest, *messages, plain(cell.training), cell.seed)
        return replace(shape, label_tokens=-(-shape.label_tokens // LABEL_STEP) * LABEL_STEP)

    def _at(self, checkpoint: Checkpoint, cell: Cell, precision: Precision, shape: BatchShape) -> Forecast:
        decides = {
            "config": (checkpoint.folder / "config.json").read_text(),
            "method": plain(cell.method),
            "precision": precision.value,
            "shape": asdict(shape),
            "accumulates": _accumulates(cell.training),
            "gradient_checkpointing": cell.training.gradient_checkpointing,
            "attention": cell.model.attention,
            "versions": versions(cell.method),
            "forecast_version": FORECAST_VERSION,
        }
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

        def find() -> Forecast:
            try:
                shadow = shadow_step(
                    checkpoint,
                    cell.method,
                    precision=precision,
                    shape=shape,
                    accumulates=_accumulates(cell.training),
                    gradient_checkpointing=cell.training.gradient_checkpointing,
                    attention=cell.model.attention,
                )
            except FtmatrixError:
                raise
            except Exception as error:  # a model that fake tensors can't pass may train all the same
                raise UnforeseenError(f"{type(error).__name__}: {first_line(error)}") from error
            return Forecast(shadow.peak_bytes, shadow.parts)

        return self._shared(lambda: self._kept(key) or self._keep(key, find()), key)

    def _kept(self, key: str) -> Forecast | None:
        try:
            return from_json(Forecast, (self.folder / f"{key}.json").read_text())
        except (OSError, ValueError):  # never found out, or not written whole
            return None

    def _keep(self, key: str, forecast: Forecast) -> Forecast:
        with suppress(OSError):  # to be found out again is no reason to stop
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{key}.part"
            part.write_text(to_json(forecast))
            part.replace(self.folder / f"{key}.json")
        return forecast


def largest_batch(lengths: Sequence[tuple[int, int]], training: Training, seed: int) -> BatchShape:
    """The shape of the micro-batch with the most tokens, padding counted, that this seed's order of data comes to."""
    micro = training.micro_batch_size or training.batch_size
    largest = BatchShape(0, 0, 0)
    for epoch in range(training.epochs):
        for rows in epoch_order(len(lengths), seed, epoch).split(training.batch_size):
            for part in rows.split(micro):
                chosen = [lengths[row] for row in part.tolist()]
                longest, labels = max(length for length, _ in chosen), sum(label for _, label in chosen)
                if len(chosen) * longest > largest.rows * largest.length:
                    largest = BatchShape(len(chosen), longest, max(labels, largest.label_tokens))
    return largest


def _accumulates(training: Training) -> bool:
    """Whether gradients stay in memory from one micro-batch to the next."""
    return training.micro_batch_size is not None and training.micro_batch_size < training.batch_size

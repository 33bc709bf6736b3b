"""Forecasts of the cells of a sweep: what they share is found out once, and kept for the next command."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ftmatrix.config import plain
from ftmatrix.framing import Framer
from ftmatrix.memory.shadow import BatchShape, shadow_step
from ftmatrix.models import load_tokenizer
from ftmatrix.preparation import ReadyCell, Shared
from ftmatrix.records import Forecast, from_json, to_json
from ftmatrix.settings import Training
from ftmatrix.training import epoch_order

FORECAST_VERSION = 1
"""Raised when a change to this program changes its forecasts."""


class Forecaster:
    """Forecasts cells. `folder` keeps what was found out, under a name made of all that decides it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shared = Shared()

    def forecast(self, ready: ReadyCell) -> Forecast:
        """Peak memory of a cell's training, from its configuration and its messages' lengths.

        Raises:
            ModelError: the checkpoint's config or tokenizer can't be used.
        """
        shape = largest_batch(self._lengths(ready), ready.cell.training, ready.cell.seed)
        key = self._key(ready, shape)
        return self._shared(lambda: self._kept(key) or self._found(ready, shape, key), key)

    def _lengths(self, ready: ReadyCell) -> list[tuple[int, int]]:
        """Tokens of each training message, and of its label within them."""

        def find() -> list[tuple[int, int]]:
            framer = Framer(ready.cell.framing, load_tokenizer(ready.checkpoint), ready.dataset.labels)
            return [(len(example), len(example.label)) for example in framer.frame(ready.dataset.train)]

        return self._shared(find, ready.checkpoint.folder, ready.dataset.digest, plain(ready.cell.framing))

    def _key(self, ready: ReadyCell, shape: BatchShape) -> str:
        training = ready.cell.training
        decides = {
            "config": (ready.checkpoint.folder / "config.json").read_text(),
            "method": plain(ready.cell.method),
            "precision": ready.precision.value,
            "shape": asdict(shape),
            "accumulates": _accumulates(training),
            "gradient_checkpointing": training.gradient_checkpointing,
            "attention": ready.cell.model.attention,
            "versions": ready.versions,
            "forecast_version": FORECAST_VERSION,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def _kept(self, key: str) -> Forecast | None:
        try:
            return from_json(Forecast, (self.folder / f"{key}.json").read_text())
        except (OSError, ValueError):  # never found out, or not written whole
            return None

    def _found(self, ready: ReadyCell, shape: BatchShape, key: str) -> Forecast:
        shadow = shadow_step(
            ready.checkpoint,
            ready.cell.method,
            precision=ready.precision,
            shape=shape,
            accumulates=_accumulates(ready.cell.training),
            gradient_checkpointing=ready.cell.training.gradient_checkpointing,
            attention=ready.cell.model.attention,
        )
        forecast = Forecast(shadow.peak_bytes, shadow.parts)
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

"""Forecasts of the cells of a sweep: what they share is found out once, and kept for the next command."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy

from ftmatrix.errors import FtmatrixError, UnforeseenError, first_line
from ftmatrix.forecast.shadow import BatchShape, Work, shadow_run
from ftmatrix.lm import (
    PASSAGE_TOKENS,
    PASSAGES_AT_ONCE,
    Framer,
    Training,
    epoch_order,
    row_tokens_of,
    rows_of,
    width_of,
)
from ftmatrix.machine import Device, Precision, replacing
from ftmatrix.models import PACKAGED, Checkpoint, empty_model, limits_of, load_tokenizer
from ftmatrix.records import Forecast, from_json, to_json
from ftmatrix.roles import plain
from ftmatrix.spec import Cell, ReadyCell, Shared, UnfetchedCell, versions

FORECAST_VERSION = 8
"""Raised when a change to this program changes its forecasts."""
STAND_IN = Checkpoint(PACKAGED / "pocket-1m", "", 0)
"""Whose tokenizer counts tokens for a model without one yet: its small vocabulary makes more of a text, not fewer."""
CPU_PROCESS_BYTES = 96 * 2**20
"""What training adds to a CPU's resident set beside its tensors: libraries' pages, the heap of small blocks.

Measured between 50 and 130 MiB; `make bench ARGS=memory` shows what is left of it.
"""
CPU_PROCESS_MOST = 130 * 2**20
"""The most of that. What its spread leaves uncertain by more than a tenth is forecast with it, as a bound."""
CUBLAS_BYTES = 2 * 8 * 4 * 2**20
"""What cuBLAS has the allocator keep: CUBLAS_WORKSPACE_CONFIG=:4096:8, for the forward and for the backward thread."""
TOKENIZER_BYTES = 1088
"""What a tokenizer takes of a CPU's resident set for each token that it knows: 272 MiB of Gemma 3's 262,144."""
LABEL_STEP = 16
"""Label tokens of a batch are rounded up to a multiple of this, so that seeds share a forecast."""
SHARED_SEEDS = 5
"""Seeds 0, 1, … whose largest batches make one forecast."""
NEARLY_FULLEST = 0.75
"""Batches with at least this share of the fullest one's tokens may take the most room."""
UNCERTAIN = 0.1
"""Share of a forecast from which on it is said to be a bound."""
LONGEST_LABEL = 16
"""Tokens that no label of unknown data is expected to exceed."""
PASSAGES = BatchShape(PASSAGES_AT_ONCE, PASSAGE_TOKENS + 1, PASSAGES_AT_ONCE * PASSAGE_TOKENS)
"""Running text, of which every token is predicted."""


class Forecaster:
    """Forecasts cells. `folder` keeps what was found out, under a name made of all that decides it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shared = Shared()

    def forecast(self, known: ReadyCell | UnfetchedCell) -> Forecast:
        """Peak memory of a cell, from its architecture, which must be known, and its messages' lengths.

        Of a cell that isn't fetched, the most that it may take.

        Raises:
            ModelError: the checkpoint's config or tokenizer can't be used.
            UnforeseenError: the architecture doesn't run on fake tensors.
        """
        assert known.checkpoint is not None
        tensors = self._at(known.checkpoint, known.cell, known.precision, self._work(known.checkpoint, known))
        if known.accelerator.device is Device.cuda and tensors.evaluate_bytes is not None:
            peak, evaluate = tensors.peak_bytes + CUBLAS_BYTES, tensors.evaluate_bytes + CUBLAS_BYTES
            return replace(tensors, peak_bytes=peak, evaluate_bytes=evaluate)
        if known.accelerator.device is not Device.cpu or tensors.evaluate_bytes is None:
            return tensors
        is_bound = UNCERTAIN * (tensors.most_bytes + CPU_PROCESS_BYTES) < CPU_PROCESS_MOST - CPU_PROCESS_BYTES
        tokenizer = TOKENIZER_BYTES * limits_of(known.checkpoint).vocabulary
        beside = tokenizer + (CPU_PROCESS_MOST if is_bound else CPU_PROCESS_BYTES)
        peak, evaluate = tensors.peak_bytes + beside, tensors.evaluate_bytes + beside
        return replace(tensors, peak_bytes=peak, evaluate_bytes=evaluate, is_bound=is_bound)

    def _work(self, checkpoint: Checkpoint, known: ReadyCell | UnfetchedCell) -> Work:
        """The shapes of the cell's largest batches. Of data that isn't here, the largest that there may be."""
        cell, dataset = known.cell, known.dataset
        training, evaluation, longest = cell.training, cell.evaluation, cell.framing.max_length
        if dataset is None:
            label = min(longest, LONGEST_LABEL)
            sizes = (training.at_once(cell.devices), evaluation.batch_size)
            trained, answered = (BatchShape(rows, longest, rows * label) for rows in sizes)
            scored = answered
        else:
            source = checkpoint if checkpoint.has_tokenizer else STAND_IN
            messages = (source.folder, dataset.digest, plain(cell.framing))

            def find() -> list[Lengths]:
                limits = limits_of(checkpoint) if source is checkpoint else None
                framer = Framer(cell.framing, load_tokenizer(source), dataset.labels, limits)
                framed = [framer.frame(split) for split in (dataset.train, dataset.validation, dataset.test)]
                framer.check(chain(*framed), f"model={cell.model.title}")
                return [[(len(row), len(row.label)) for row in split] for split in framed]

            row_tokens = self._row_tokens(checkpoint, cell.model.attention)
            train, *others = self._shared(find, *messages)
            seed = max(cell.seed, SHARED_SEEDS - 1)  # those before it share one answer
            largest = partial(largest_batch, train, training, seed, row_tokens, cell.devices)
            trained = self._shared(largest, *messages, plain(training), seed, row_tokens, cell.devices)
            bounds = [bound_of(split, evaluation.batch_size) for split in others]
            answered = max(bounds, key=lambda shape: shape.rows * shape.length)
            in_batches = chain(*(by_length(split, evaluation.batch_size) for split in others))
            scored = self._shared(
                partial(largest_of, in_batches, row_tokens), *messages, "scored", evaluation.batch_size, row_tokens
            )
        return Work(
            trained=_rounded(trained),
            answered=_rounded(answered),
            scored=(_rounded(scored), *([PASSAGES] if evaluation.forgetting else [])),
            accumulates=training.at_once(cell.devices) * cell.devices < training.batch_size
            or (cell.devices > 1 and not cell.shard),  # copies keep room for their gradients
            shards=cell.devices if cell.shard else 1,
            one_gradient=cell.devices == 1 and known.accelerator.device is Device.cpu,
            gradient_checkpointing=training.gradient_checkpointing,
            attention=cell.model.attention,
        )

    def _row_tokens(self, checkpoint: Checkpoint, attention: str) -> int | None:
        def find() -> int | None:
            with _unforeseen():
                return row_tokens_of(empty_model(checkpoint, attention=attention))

        return self._shared(find, "rows", checkpoint.folder, attention)

    def _at(self, checkpoint: Checkpoint, cell: Cell, precision: Precision, work: Work) -> Forecast:
        decides = {
            "config": (checkpoint.folder / "config.json").read_text(),
            "method": plain(cell.method),
            "precision": precision.value,
            "work": asdict(work),
            "versions": versions(cell.method),
            "forecast_version": FORECAST_VERSION,
        }
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

        def find() -> Forecast:
            with _unforeseen():
                return shadow_run(checkpoint, cell.method, precision, work)

        return self._shared(lambda: self._kept(key) or self._keep(key, find()), key)

    def _kept(self, key: str) -> Forecast | None:
        try:
            return from_json(Forecast, (self.folder / f"{key}.json").read_text())
        except (OSError, ValueError):  # never found out, or not written whole
            return None

    def _keep(self, key: str, forecast: Forecast) -> Forecast:
        with suppress(OSError):  # to be found out again is no reason to stop
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{key}.json") as file:
                file.write(to_json(forecast).encode())
        return forecast


@contextmanager
def _unforeseen() -> Iterator[None]:
    """A model that can't be built or run without weights may train all the same."""
    try:
        yield
    except FtmatrixError:
        raise
    except Exception as error:
        raise UnforeseenError(f"{type(error).__name__}: {first_line(error)}") from error


Lengths = Sequence[tuple[int, int]]
"""Of each message its tokens, and those of its label within them."""


def largest_batch(
    lengths: Lengths, training: Training, seed: int, row_tokens: int | None, devices: int = 1
) -> BatchShape:
    """The largest forward pass on any device that the orders of data of the first seeds, and of this one, come to.

    So cells that differ in their seed alone share a forecast. Of packed batches only the fullest are looked at.
    """
    tokens, labels = numpy.array(lengths).T
    at_once = training.at_once(devices)
    firsts = range(0, len(tokens), training.batch_size)
    starts = [
        start for first in firsts for start in range(first, min(first + training.batch_size, len(tokens)), at_once)
    ]
    largest, most_labels = list[Lengths](), 0
    for order in _orders(len(tokens), training.epochs, {*range(SHARED_SEEDS), seed}):
        sums = numpy.add.reduceat(tokens[order], starts)
        most_labels = max(most_labels, int(numpy.add.reduceat(labels[order], starts).max()))
        full = range(len(starts)) if row_tokens is None else numpy.flatnonzero(sums >= NEARLY_FULLEST * sums.max())
        batches = numpy.split(order, starts[1:])
        largest += [[lengths[row] for row in batches[index]] for index in full]
    return replace(largest_of(largest, row_tokens), label_tokens=most_labels)


def _orders(count: int, epochs: int, seeds: Iterable[int]) -> Iterator[numpy.ndarray]:
    return (epoch_order(count, seed, epoch).numpy() for seed in seeds for epoch in range(epochs))


def largest_of(batches: Iterable[Lengths], row_tokens: int | None) -> BatchShape:
    """The shape of the batch with the most tokens, empty places counted, and the most label tokens of any."""
    largest = BatchShape(0, 0, 0)
    for batch in batches:
        tokens = [length for length, _ in batch]
        rows = rows_of(tokens, row_tokens)
        width = width_of(tokens, rows)
        most = max(sum(label for _, label in batch), largest.label_tokens)
        larger = len(rows) * width > largest.rows * largest.length
        largest = BatchShape(len(rows), width, most) if larger else replace(largest, label_tokens=most)
    return largest


def bound_of(lengths: Lengths, rows: int) -> BatchShape:
    """What no batch of so many messages exceeds, however they are put together."""
    labels = sorted(label for _, label in lengths)[-rows:]
    return BatchShape(len(labels), max(length for length, _ in lengths), sum(labels))


def by_length(lengths: Lengths, rows: int) -> list[Lengths]:
    """The batches in which the evaluation scores these messages."""
    order = sorted(lengths, key=lambda message: -message[0])
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def _rounded(shape: BatchShape) -> BatchShape:
    return replace(shape, label_tokens=-(-shape.label_tokens // LABEL_STEP) * LABEL_STEP)

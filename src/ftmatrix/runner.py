"""One cell, from its weights to its result."""

import errno
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ftmatrix.batches import Collator
from ftmatrix.checkpoints import StoredTensors
from ftmatrix.data import Message, general_text
from ftmatrix.distributed import Group
from ftmatrix.drift import adapter_drift, trained_drift
from ftmatrix.errors import FtmatrixError, StoppedError, first_line
from ftmatrix.evaluation import Evaluator, score
from ftmatrix.foreign import quantized_by
from ftmatrix.framing import Framer
from ftmatrix.hardware import Device, allow_other_sums, autocast, is_indeterministic, seed_everything, use_threads
from ftmatrix.meters import MemoryMeter, Neighbours, Stopwatch
from ftmatrix.models import build_model, limits_of, load_model, load_tokenizer
from ftmatrix.preparation import ReadyCell
from ftmatrix.records.evaluations import Evaluation
from ftmatrix.records.measures import Durations, Forgetting, Stability, Step, WeightDrift
from ftmatrix.records.outcomes import Outcome, Phase
from ftmatrix.records.results import CellResult
from ftmatrix.resumption import Progress, ProgressFile
from ftmatrix.secondary import Secondary
from ftmatrix.stability import assess
from ftmatrix.training import Trainer, weights_are_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUT_OF_MEMORY_WORDS = ("out of memory", "allocate memory", "bad_alloc", "_alloc_failed", "memoryallocation")
"""How torch, the system and the GPU libraries say so: "can't allocate memory", CUBLAS_STATUS_ALLOC_FAILED, …"""

GOES_ON = "the same command goes on from there"
NOT_SAVED = "its progress couldn't be saved: the same command goes on from what was saved before, if anything"

Emit = Callable[[Phase | Step], None]
"""Called with each phase as it begins and each optimizer step as it is done."""


@dataclass(frozen=True)
class Trained:
    """The result of a cell, and the model and framer behind it; `weights` are the model's where it has only a part."""

    result: CellResult
    model: nn.Module
    framer: Framer
    weights: dict[str, torch.Tensor] | None = None


class CellRun:
    """Runs one cell. `phase` is the present one, so that a failure can say where it happened."""

    def __init__(
        self,
        ready: ReadyCell,
        emit: Emit,
        stopping: Callable[[], bool] = lambda: False,
        group: Group | None = None,
    ) -> None:
        self.ready, self.emit, self.stopping = ready, emit, stopping
        self.group = group or Group()
        self.phase = Phase.LOAD
        self.group.join(ready.accelerator)
        use_threads(ready.threads)
        self.meter = MemoryMeter(ready.accelerator)
        self.watch = Stopwatch(ready.accelerator)
        self.file = ProgressFile(ready.progress, ready.cell.checkpoint_minutes)
        self.secondary = Secondary()
        self.varies: str | None = None
        """An operation that gives other sums each time."""

    def run(self) -> Trained:
        """Load, evaluate, train, evaluate again; or go on where the cell's last process stopped.

        Raises:
            FtmatrixError: the model or the data can't be used.
            StoppedError: `stopping` said so while the cell trained; its progress is saved.
            torch.OutOfMemoryError: memory ran out.
        """
        ready, cell = self.ready, self.ready.cell
        seed_everything(cell.seed, ready.accelerator.device)
        with self._part(Phase.LOAD, "setup"):
            tokenizer, limits = load_tokenizer(ready.checkpoint), limits_of(ready.checkpoint)
            framer = Framer(cell.framing, tokenizer, ready.dataset.labels, limits)
            examples = framer.frame(ready.dataset.train)
            framer.check(examples, f"model={cell.model.title}")
            model = self.load()
            with autocast(ready.accelerator, ready.precision):
                collator = Collator.suiting(model, framer.pad_id)
        evaluator = Evaluator(
            model,
            framer,
            collator=collator,
            settings=cell.evaluation,
            accelerator=ready.accelerator,
            precision=ready.precision,
            group=self.group,
        )
        trainer = Trainer(
            model,
            examples,
            settings=cell.training,
            lr=cell.lr,
            seed=cell.seed,
            collator=collator,
            accelerator=ready.accelerator,
            precision=ready.precision,
            group=self.group,
        )
        self._deterministically(partial(self._rehearse, evaluator, trainer))
        saved = self.file.load()
        (one_has_none,) = self.group.any(saved is None)  # what not all can read, none goes on from
        if saved is None or one_has_none:
            saved = None
            with self._part(Phase.EVALUATE, "evaluate"):
                before = Progress((), evaluator.nll(ready.dataset.validation), self._text_nll(evaluator), None, (), {})
        else:
            before = saved.progress
            self.meter.take_up(before.peaks)
            self.watch.take_up(before.seconds)
        with self._part(Phase.TRAIN, "train"):
            if saved is not None:
                trainer.restore(saved.state)
                trainer.memory = before.memory
                saved = None  # its copy of the weights
            neighbours = Neighbours()
            steps = self._train(trainer, before)
            alone_on_cpu = ready.accelerator.device is Device.cpu and self.group.is_alone
            neighbour_cores = neighbours.cores() if alone_on_cpu else None
            warmup = cell.training.warmup_steps(trainer.total_steps)
            memory = trainer.memory
            del trainer  # its optimizer state is no part of the evaluation's peak
            gc.collect()
        with self._part(Phase.EVALUATE, "evaluate"):
            validation = self._evaluate(evaluator, "validation", ready.dataset.validation)
            test = self._evaluate(evaluator, "test", ready.dataset.test)
            text_nll = self._text_nll(evaluator)
        drift = self.secondary("weight drift", lambda: self._drift(model))
        weights = self.group.weights(model) if cell.save_model else None
        stability = self._stability(steps, warmup, before.val_nll_initial, validation, model)
        peaks = self.group.highest(self.meter.peaks)
        self.group.leave()
        seconds = self.watch.seconds
        result = CellResult(
            Outcome.COMPLETED,
            stability=stability,
            val_nll_initial=before.val_nll_initial,
            validation=validation,
            test=test,
            peaks=peaks,
            seconds=Durations(seconds["setup"], seconds["train"], seconds["evaluate"]),
            steps=len(steps),
            tokens_per_second=sum(step.tokens for step in steps) / sum(step.seconds for step in steps),
            neighbour_cores=neighbour_cores,
            parameters=ready.checkpoint.parameters,
            trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            memory=memory,
            forecast=ready.forecast,
            drift=drift,
            forgetting=_forgetting(before.text_nll_initial, text_nll),
            device=ready.device,
            precision=f"{ready.precision.value} ({ready.precision_reason})",
            notes=self._notes(framer, collator, len(before.steps)),
        )
        return Trained(result, model, framer, weights)

    def _deterministically(self, rehearse: Callable[[], None]) -> None:
        """Rehearse; an operation that gives other sums each time is taken where there is no other, and named."""
        try:
            rehearse()
        except RuntimeError as error:
            if not is_indeterministic(error):
                raise
            allow_other_sums()
            self.varies = first_line(error).split(" does not have")[0]
            rehearse()

    def _rehearse(self, evaluator: Evaluator, trainer: Trainer) -> None:
        """Take the cell's peaks before anything else: what doesn't fit is known at once, and the rest can be quick."""
        dataset = self.ready.dataset
        with self._part(Phase.EVALUATE, "setup"):
            evaluator.rehearse((dataset.validation, dataset.test))
            if self.ready.cell.evaluation.forgetting:
                self.secondary("forgetting", lambda: evaluator.rehearse_text(general_text()))
        with self._part(Phase.TRAIN, "setup"):
            trainer.rehearse()
        self.meter.hurry()

    def _train(self, trainer: Trainer, before: Progress) -> list[Step]:
        """All steps of the training: those that an earlier process did, and the others as they are done."""
        steps = list(before.steps)
        for step in steps:
            self.emit(step)
        saved = False
        for step in trainer.steps(start=len(steps)):
            steps.append(step)
            self.emit(step)
            due, stopping = self.group.any(self.group.rank.is_first and self.file.due, self.stopping())
            if step.is_finite and (due or stopping):
                progress = Progress(
                    tuple(steps),
                    before.val_nll_initial,
                    before.text_nll_initial,
                    trainer.memory,
                    self.meter.so_far(),
                    self.watch.so_far(),
                )
                state = trainer.state()
                saved = self.group.rank.is_first and self.file.save(progress, state)
            if stopping:
                raise StoppedError(f"stopped after step {step.index}; {GOES_ON if saved else NOT_SAVED}")
        return steps

    def load(self) -> nn.Module:
        """The model that the method trains."""
        ready, method = self.ready, self.ready.cell.method
        device = "cpu" if self.group.sharded else ready.accelerator.kind  # none has room for all of it
        if ready.cell.model.from_scratch:
            model = self._random_model(device)
        else:
            model = load_model(
                ready.checkpoint,
                dtype=method.weights_dtype(ready.precision),
                device=device,
                quantization=method.quantization(ready.precision),
                attention=ready.cell.model.attention,
            )
        adapted = method.adapt(model, ready.precision)
        self.group.shard(adapted, ready.accelerator)
        if not self.group.rank.is_first:  # dropout is each device's own
            torch.manual_seed(ready.cell.seed + (self.group.rank.index << 32))
        return adapted

    def _random_model(self, device: str) -> "PreTrainedModel":
        """New weights in the model's architecture: the same ones whenever this cell asks for them."""
        cell = self.ready.cell
        torch.manual_seed(cell.seed)
        dtype = cell.method.weights_dtype(self.ready.precision)
        return build_model(self.ready.checkpoint, dtype=dtype, device=device, attention=cell.model.attention)

    def _drift(self, model: nn.Module) -> WeightDrift:
        """How far training moved the weights from where they came from.

        Raises:
            LookupError: the checkpoint's tensors have other names or shapes than the model's.
        """
        if self.ready.cell.method.trains_adapters:
            return adapter_drift(model)
        if self.ready.cell.model.from_scratch:
            return trained_drift(model, dict(self._random_model("cpu").named_parameters()).get)
        with StoredTensors(self.ready.checkpoint.folder) as stored:
            return trained_drift(model, stored.get)

    def _text_nll(self, evaluator: Evaluator) -> float | None:
        if not self.ready.cell.evaluation.forgetting:
            return None
        return self.secondary("forgetting", lambda: evaluator.text_nll(general_text()))

    def _evaluate(self, evaluator: Evaluator, split: str, messages: tuple[Message, ...]) -> Evaluation:
        predictions, nll = evaluator.predict(messages)
        data, dataset = self.ready.cell.data, self.ready.dataset
        pair = (data.confusion_pair[0], data.confusion_pair[1]) if data.confusion_pair else None
        common = dataset.common_intents(data.common_intents)
        return score(split, predictions, nll=nll, labels=dataset.labels, common=common, pair=pair)

    def _stability(
        self, steps: list[Step], warmup: int, nll_initial: float, validation: Evaluation, model: nn.Module
    ) -> Stability:
        return assess(
            steps,
            warmup_steps=warmup,
            batch_size=self.ready.cell.training.batch_size,
            nll_initial=nll_initial,
            validation=validation,
            weights_finite=weights_are_finite(model),
        )

    def _notes(self, framer: Framer, collator: Collator, resumed: int) -> tuple[str, ...]:
        notes = list(self.ready.dataset.notes)
        if file := self.ready.checkpoint.quantized_file:
            notes.append(f"weights come from a quantised file, {file}: what quantisation cost the model is lost")
        if by := quantized_by(self.ready.checkpoint.folder):
            notes.append(f"the checkpoint was quantised before ({by}): its own settings count, not the method's")
        if resumed:
            notes.append(f"resumed after {resumed} steps: times and peaks are those of several processes")
        if framer.max_length < framer.framing.max_length:
            asked = framer.framing.max_length
            notes.append(f"framing.max_length={asked} is bounded by the model's {framer.max_length} positions")
        if framer.cut:
            notes.append(f"{len(framer.cut)} message(s) cut to {framer.max_length} tokens (framing.max_length)")
        if self.ready.shares_card:
            notes.append("other cells ran on the same card: times aren't comparable")
        if self.varies:
            kind = self.ready.accelerator.kind
            notes.append(f"the same seed may give another result: {self.varies} isn't deterministic on {kind}")
        if collator.row_tokens is None:
            notes.append("batches are padded: this model doesn't keep messages apart that share a row")
        return (*notes, *dict.fromkeys(self.secondary.notes))

    @contextmanager
    def _part(self, phase: Phase, part: str) -> Iterator[None]:
        """A phase that is told of, timed, and whose peak memory is kept."""
        self.phase = phase
        self.emit(phase)
        with self.watch.part(part), self.meter.phase(phase.value):
            yield


def _forgetting(before: float | None, after: float | None) -> Forgetting | None:
    return None if before is None or after is None else Forgetting(before, after)


def failure(error: BaseException, run: CellRun | None) -> CellResult:
    """What an exception makes of its cell: an outcome, and a reason in one line."""
    where = f"while {run.phase.doing}" if run else "while starting"
    peaks = tuple(run.meter.peaks) if run else ()
    phase = run.phase if run else None
    if isinstance(error, FtmatrixError) and not is_out_of_memory(error):
        return CellResult(error.outcome, str(error), phase, peaks=peaks)
    if is_out_of_memory(error):
        forecast = run.ready.forecast if run else None
        reason = f"memory ran out {where} ({first_line(error)})"
        return CellResult(Outcome.OUT_OF_MEMORY, reason, phase, peaks=peaks, forecast=forecast)
    return CellResult(Outcome.CRASHED, f"{type(error).__name__} {where}: {first_line(error)}", phase, peaks=peaks)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)

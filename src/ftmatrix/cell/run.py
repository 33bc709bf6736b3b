"""One cell, from its weights to its result."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ftmatrix.cell.loading import drift_of, load_adapted
from ftmatrix.cell.meters import MemoryMeter, Neighbours, Stopwatch
from ftmatrix.cell.notes import notes_of
from ftmatrix.cell.resumption import Progress, ProgressFile, Saved
from ftmatrix.cell.scoring import named_scores, score
from ftmatrix.cell.secondary import Secondary
from ftmatrix.cell.stability import assess
from ftmatrix.data import Message, general_text
from ftmatrix.errors import StoppedError, first_line
from ftmatrix.lm import Compute, Evaluator, Framer, Group, Trainer, weights_are_finite
from ftmatrix.machine import Device, allow_other_sums, is_indeterministic, seed_everything, use_threads
from ftmatrix.models import limits_of, load_tokenizer
from ftmatrix.records import CellResult, Durations, Evaluation, Forgetting, MemoryParts, Outcome, Phase, Step
from ftmatrix.spec import ReadyCell

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


@dataclass(frozen=True)
class _Training:
    """What a training came to; `warmup` counts steps."""

    steps: tuple[Step, ...]
    warmup: int
    memory: MemoryParts | None
    neighbour_cores: float | None


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
        ready, dataset = self.ready, self.ready.dataset
        seed_everything(ready.cell.seed, ready.accelerator.device)
        evaluator, trainer = self._load()
        model, framer = evaluator.model, evaluator.framer
        self._deterministically(partial(self._rehearse, evaluator, trainer))
        saved = self._saved()
        before = self._counted(saved.progress) if saved else self._first_figures(evaluator)
        with self._part(Phase.TRAIN, "train"):
            if saved:
                trainer.restore(saved.state)
                trainer.memory = before.memory
            del saved  # its copy of the weights
            training = self._train(trainer, before)
            del trainer  # its optimizer state is no part of the evaluation's peak
            gc.collect()
        with self._part(Phase.EVALUATE, "evaluate"):
            validation = self._evaluate(evaluator, "validation", dataset.validation)
            test = self._evaluate(evaluator, "test", dataset.test)
            text_nll = self._text_nll(evaluator)
        drift = self.secondary("weight drift", lambda: drift_of(model, ready))
        weights = self.group.weights(model) if ready.cell.save_model else None
        stability = assess(
            training.steps,
            warmup_steps=training.warmup,
            batch_size=ready.cell.training.batch_size,
            nll_initial=before.val_nll_initial,
            validation=validation,
            weights_finite=weights_are_finite(model),
        )
        peaks = self.group.highest(self.meter.peaks)
        self.group.leave()
        result = CellResult(
            Outcome.COMPLETED,
            stability=stability,
            val_nll_initial=before.val_nll_initial,
            validation=validation,
            test=test,
            peaks=peaks,
            seconds=Durations(**self.watch.seconds),
            steps=len(training.steps),
            tokens_per_second=sum(step.tokens for step in training.steps)
            / sum(step.seconds for step in training.steps),
            neighbour_cores=training.neighbour_cores,
            parameters=ready.checkpoint.parameters,
            trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            memory=training.memory,
            forecast=ready.forecast,
            drift=drift,
            forgetting=Forgetting.between(before.text_nll_initial, text_nll),
            device=ready.device,
            precision=f"{ready.precision.value} ({ready.precision_reason})",
            notes=(
                *notes_of(ready, evaluator, resumed=len(before.steps), varies=self.varies),
                *dict.fromkeys(self.secondary.notes),
            ),
        )
        return Trained(result, model, framer, weights)

    def _load(self) -> tuple[Evaluator, Trainer]:
        """The model that the method trains, with what trains it and what asks it."""
        ready, cell = self.ready, self.ready.cell
        with self._part(Phase.LOAD, "setup"):
            tokenizer, limits = load_tokenizer(ready.checkpoint), limits_of(ready.checkpoint)
            framer = Framer(cell.framing, tokenizer, ready.dataset.labels, limits)
            examples = framer.frame(ready.dataset.train)
            framer.check(examples, f"model={cell.model.title}")
            model = load_adapted(ready, self.group)
            compute = Compute.suiting(model, framer.pad_id, ready.accelerator, ready.precision, self.group)
        evaluator = Evaluator(model, framer, compute, settings=cell.evaluation)
        trainer = Trainer(model, examples, compute, settings=cell.training, lr=cell.lr, seed=cell.seed)
        return evaluator, trainer

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

    def _saved(self) -> Saved | None:
        """What the cell's last process saved; None where not every process of this one can read it."""
        saved = self.file.load()
        (one_has_none,) = self.group.any(saved is None)
        return None if one_has_none else saved

    def _counted(self, progress: Progress) -> Progress:
        """Count what an earlier process measured."""
        self.meter.add_earlier(progress.peaks)
        self.watch.add_earlier(progress.seconds)
        return progress

    def _first_figures(self, evaluator: Evaluator) -> Progress:
        """What is known before the first step."""
        with self._part(Phase.EVALUATE, "evaluate"):
            nll = evaluator.nll(self.ready.dataset.validation)
            return Progress((), nll, self._text_nll(evaluator), None, (), {})

    def _train(self, trainer: Trainer, before: Progress) -> _Training:
        """All steps of the training: those that an earlier process did, and the others as they are done."""
        neighbours = Neighbours()
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
        alone_on_cpu = self.ready.accelerator.device is Device.cpu and self.group.is_alone
        return _Training(
            tuple(steps),
            self.ready.cell.training.warmup_steps(trainer.total_steps),
            trainer.memory,
            neighbours.cores() if alone_on_cpu else None,
        )

    def _text_nll(self, evaluator: Evaluator) -> float | None:
        if not self.ready.cell.evaluation.forgetting:
            return None
        return self.secondary("forgetting", lambda: evaluator.text_nll(general_text()))

    def _evaluate(self, evaluator: Evaluator, split: str, messages: tuple[Message, ...]) -> Evaluation:
        predictions, nll = evaluator.predict(messages)
        data, dataset = self.ready.cell.data, self.ready.dataset
        pair = (data.confusion_pair[0], data.confusion_pair[1]) if data.confusion_pair else None
        common = dataset.common_intents(data.common_intents)
        scores = named_scores(predictions, self.secondary)
        return score(split, predictions, nll=nll, labels=dataset.labels, common=common, pair=pair, scores=scores)

    @contextmanager
    def _part(self, phase: Phase, part: str) -> Iterator[None]:
        """A phase that is told of, timed, and whose peak memory is kept."""
        self.phase = phase
        self.emit(phase)
        with self.watch.part(part), self.meter.phase(phase.value):
            yield

"""What a process of its own measures on a device: packed against padded rows, and our loop's pace beside another's."""

import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftmatrix.machine import Device, Precision, seed_everything, visible
from ftmatrix.spec import ReadyCell

if TYPE_CHECKING:
    from ftmatrix.lm import Example, Framer

SKIPPED = 3
"""Steps in which memory and kernels still find their places."""
IGNORED = -100
"""Targets that a library's loss leaves out."""


@dataclass(frozen=True)
class Measured:
    """`difference` is the largest of any message's loss between packed and padded rows, as a share of the mean loss;
    None where the model packs nothing. Paces are in tokens a second.
    """

    difference: float | None
    pace: float
    trainers_pace: float


def measure(ready: ReadyCell) -> Measured:
    """All of it, on the first card."""
    os.environ |= visible(ready.accelerator.device, [card.name for card in ready.accelerator.cards[:1]])
    from ftmatrix.lm import Framer
    from ftmatrix.models import limits_of, load_tokenizer

    cell = ready.cell
    framer = Framer(cell.framing, load_tokenizer(ready.checkpoint), ready.dataset.labels, limits_of(ready.checkpoint))
    examples = framer.frame(ready.dataset.train)
    seed_everything(cell.seed, ready.accelerator.device)
    return Measured(
        _difference(ready, framer, examples), _pace(ready, framer, examples), _trainers_pace(ready, framer, examples)
    )


def _model(ready: ReadyCell) -> Any:
    from ftmatrix.cell import load_adapted
    from ftmatrix.lm import Group
    from ftmatrix.machine import use_threads

    use_threads(ready.threads)
    return load_adapted(ready, Group())


def _difference(ready: ReadyCell, framer: "Framer", examples: "list[Example]") -> float | None:
    from dataclasses import replace

    from ftmatrix.lm import Compute, Evaluator

    model = _model(ready)
    packed = Compute.suiting(model, framer.pad_id, ready.accelerator, ready.precision)
    if packed.collator.row_tokens is None:
        return None
    losses = []
    for compute in (packed, replace(packed, collator=replace(packed.collator, row_tokens=None))):
        evaluator = Evaluator(model, framer, compute, settings=ready.cell.evaluation)
        losses.append([gold.nll for gold in evaluator.gold_pass(examples)])
    mean = sum(losses[1]) / len(losses[1])
    largest: float = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return largest / mean


def _pace(ready: ReadyCell, framer: "Framer", examples: "list[Example]") -> float:
    from ftmatrix.lm import Compute, Trainer

    model = _model(ready)
    trainer = Trainer(
        model,
        examples,
        Compute.suiting(model, framer.pad_id, ready.accelerator, ready.precision),
        settings=ready.cell.training,
        lr=ready.cell.lr,
        seed=ready.cell.seed,
    )
    trainer.rehearse()
    timed = list(trainer.steps())[SKIPPED:]
    return sum(step.tokens for step in timed) / sum(step.seconds for step in timed)


def _trainers_pace(ready: ReadyCell, framer: "Framer", examples: "list[Example]") -> float:
    """Of transformers' own loop over the same messages, padded as it does."""
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from ftmatrix.models import load_tokenizer

    rows: Any = [
        {
            "input_ids": [*example.prompt, *example.label],
            "attention_mask": [1] * len(example),
            "labels": [*[IGNORED] * len(example.prompt), *example.label],
        }
        for example in examples
    ]
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ready.accelerator.synchronize()
            ends.append(time.perf_counter())

    training = ready.cell.training
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=_model(ready),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=training.batch_size,
                num_train_epochs=1,
                learning_rate=ready.cell.lr,
                max_grad_norm=training.max_grad_norm or 0.0,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=ready.accelerator.device is Device.cpu,
                bf16=ready.precision is Precision.mixed,
                dataloader_pin_memory=False,
            ),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(load_tokenizer(ready.checkpoint), label_pad_token_id=IGNORED),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = len(ends) - SKIPPED
    share = steps / len(ends)  # of the messages, whose order is the trainer's own
    return share * sum(len(example) for example in examples) / (ends[-1] - ends[SKIPPED - 1])

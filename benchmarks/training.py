"""A training step against its peers: transformers' Trainer, TRL's SFTTrainer, and the plain loop that PEFT compares by.

All train the same model on the same batches in the same order: float32, AdamW, one constant rate, the same clipping,
no gradient checkpointing. Each run has a process of its own; the contenders take turns, round after round, and ratios
are those of one step on one batch. Their losses have to agree step by step, else the benchmark ends with an error.

ARGS="training rounds=2 shapes=pocket-4m,gemma3-270m methods=full,lora data=DIR" narrows it; `data` is a folder of
Banking77's CSVs, without it the packaged messages are taken. TRL has to be installed (`pip install trl`).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from benchmarks.shapes import SHAPES, build
from ftmatrix.arms import FullFineTuning, Lora, Method, Quantization
from ftmatrix.cell.meters import MemoryMeter
from ftmatrix.data import Message, Pocket
from ftmatrix.data.banking77 import Banking77
from ftmatrix.lm import Compute, Example, Framer, Framing, Training, epoch_order
from ftmatrix.lm import Trainer as OurTrainer
from ftmatrix.lm.settings import Schedule
from ftmatrix.machine import Accelerator, Device, Precision, pick, seed_everything
from ftmatrix.models import Checkpoint, load_model

METHODS: dict[str, Method] = {
    "full": FullFineTuning(name="full"),
    "lora": Lora(name="lora"),
    "qlora": Lora(name="qlora", quantize=Quantization.nf4),
}
STEPS = {"pocket-4m": 40, "smollm2-135m": 10, "gemma3-270m": 6}
"""Timed steps, by shape."""
SKIPPED = 2
"""First steps, in which libraries and allocator settle."""
LR, BATCH, CLIP = 1e-4, 16, 1.0
IGNORED = -100
"""Label id of positions that carry no loss, in transformers."""
AGREE = 2e-3
"""How far losses of one step may lie apart; a trainer's log rounds them to four places."""


@dataclass(frozen=True)
class Timed:
    """One contender's run: each step's loss, the seconds of those that count, and the peak of its training."""

    losses: list[float]
    seconds: list[float]
    peak_bytes: int | None


@dataclass(frozen=True)
class Job:
    """What every contender is given. `examples` are in the order in which they are trained on."""

    model: nn.Module
    tokenizer: Any
    examples: Sequence[Example]
    accelerator: Accelerator
    meter: MemoryMeter

    def done(self, steps: int) -> None:
        """Hear of a library's steps: its first tell its memory, the others its time."""
        if steps == SKIPPED:
            self.meter.so_far()
            self.meter.hurry()

    @property
    def rows(self) -> list[dict[str, list[int]]]:
        """The examples as the libraries take them."""
        return [
            {
                "input_ids": [*example.prompt, *example.label],
                "attention_mask": [1] * len(example),
                "labels": [*[IGNORED] * len(example.prompt), *example.label],
            }
            for example in self.examples
        ]

    @property
    def arguments(self) -> dict[str, Any]:
        """What transformers' and TRL's trainers are told alike."""
        return {
            "output_dir": tempfile.mkdtemp(),
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 1,
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "max_grad_norm": CLIP,
            "weight_decay": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "train_sampling_strategy": "sequential",
            "disable_tqdm": True,
            "use_cpu": self.accelerator.device is Device.cpu,
            "dataloader_pin_memory": False,
            "bf16": False,
            "gradient_checkpointing": False,
        }


Run = Callable[[Job], Iterator[float]]
"""Trains, and yields each step's loss as it is done."""


def ours(job: Job) -> Iterator[float]:
    order = epoch_order(len(job.examples), 0, 0).argsort()  # undoes the order that our trainer gives the examples
    settings = Training(epochs=1, batch_size=BATCH, schedule=Schedule.constant, warmup_fraction=0.0, max_grad_norm=CLIP)
    trainer = OurTrainer(
        job.model,
        [job.examples[row] for row in order.tolist()],
        Compute.suiting(job.model, job.tokenizer.pad_token_id, job.accelerator, Precision.fp32),
        settings=settings,
        lr=LR,
        seed=0,
    )
    trainer.rehearse()
    job.done(SKIPPED)
    for step in trainer.steps():
        yield step.loss


def plain(job: Job) -> Iterator[float]:
    """The loop of PEFT's method comparison: the model's own loss over all positions, AdamW as it is."""
    collator = DataCollatorForSeq2Seq(job.tokenizer, label_pad_token_id=IGNORED)
    trained = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    job.model.train()
    for number, batch in enumerate(DataLoader(job.rows, batch_size=BATCH, collate_fn=collator), start=1):  # type: ignore[arg-type]
        loss = job.model(**{name: value.to(job.accelerator.kind) for name, value in batch.items()}).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        job.done(number)
        yield loss.item()


def transformers_trainer(job: Job) -> Iterator[float]:
    trainer = Trainer(
        model=job.model,
        args=TrainingArguments(**job.arguments),
        train_dataset=job.rows,
        data_collator=DataCollatorForSeq2Seq(job.tokenizer, label_pad_token_id=IGNORED),
    )
    return _logged(trainer, job)


def sft_trainer(job: Job) -> Iterator[float]:
    """Completion-only, with TRL's own loss."""
    return _sft(job)


def sft_trainer_padding_free(job: Job) -> Iterator[float]:
    """The same without padding: a batch is one row."""
    return _sft(job, padding_free=True)


def _sft(job: Job, **options: bool) -> Iterator[float]:
    datasets, trl = import_module("datasets"), import_module("trl")  # no dependencies of the project
    rows = [
        {
            "input_ids": [*example.prompt, *example.label],
            "completion_mask": [0] * len(example.prompt) + [1] * len(example.label),
        }
        for example in job.examples
    ]
    trainer = trl.SFTTrainer(
        model=job.model,
        args=trl.SFTConfig(**job.arguments, completion_only_loss=True, max_length=None, **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=job.tokenizer,
    )
    for parameter in trainer.model.parameters():  # it casts a quantised model's adapters to bfloat16: not the same work
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return _logged(trainer, job)


def _logged(trainer: Trainer, job: Job) -> Iterator[float]:
    """Run a trainer; its steps' losses, one by one, with the times at which they were done kept in between."""
    losses: list[float] = []
    ends: list[float] = []

    class Follow(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            job.done(len(ends))

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer.add_callback(Follow())
    trainer.train()
    for end, loss in zip(ends, losses, strict=True):
        _ENDS.append(end)
        yield loss


_ENDS: list[float] = []
"""When each step was done, where the contender isn't a loop of ours that could be watched from outside."""
CONTENDERS: dict[str, Run] = {
    "ftmatrix": ours,
    "Trainer": transformers_trainer,
    "SFTTrainer": sft_trainer,
    "SFTTrainer, padding-free": sft_trainer_padding_free,
    "plain loop": plain,
}


def run_one(contender: str, folder: Path, method: Method, steps: int, messages: Sequence[Message]) -> Timed:
    """One contender, in this process."""
    accelerator = pick(Device.auto)
    meter = MemoryMeter(accelerator)
    seed_everything(0, accelerator.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    framer = Framer(Framing(), tokenizer, sorted({message.label for message in messages}))
    order = epoch_order(len(messages), 0, 0)[: BATCH * (SKIPPED + steps)]
    examples = framer.frame([messages[row] for row in order.tolist()])
    model = method.adapt(
        load_model(
            Checkpoint(folder, "", 0),
            dtype=method.weights_dtype(Precision.fp32),
            device=accelerator.kind,
            quantization=method.quantization(Precision.fp32),
        ),
        Precision.fp32,
    )
    losses, ends = [], []
    with meter.phase("train"):
        for loss in CONTENDERS[contender](Job(model, tokenizer, examples, accelerator, meter)):
            losses.append(loss)
            ends.append(time.perf_counter())
    ends = _ENDS or ends
    seconds = [after - before for before, after in zip(ends[SKIPPED - 1 :], ends[SKIPPED:], strict=False)]
    return Timed(losses, seconds, meter.peaks[0].peak_bytes)


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    rounds = int(options.get("rounds", "2"))
    table = Table(title=f"A training step ({os.cpu_count()} cores), ratios to ftmatrix", title_justify="left")
    for name in ("shape", "method", "contender"):
        table.add_column(name)
    for name in ("ms a step", "time (least to most)", "peak MiB", "memory", "loss, last step"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        for shape in options.get("shapes", ",".join(("pocket-4m", *SHAPES))).split(","):
            folder = build(Path(scratch), shape)
            for method in options.get("methods", ",".join(METHODS)).split(","):
                found: dict[str, list[Timed]] = {name: [] for name in CONTENDERS}
                for turn in range(rounds):
                    names = list(CONTENDERS)
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        found[name].append(_child(name, folder, method, STEPS[shape], options.get("data", "")))
                        median = 1000 * statistics.median(found[name][-1].seconds)
                        print(f"{shape} {method} {name}: {median:,.0f} ms a step", file=sys.stderr, flush=True)
                _check(shape, method, found)
                _add(table, shape, method, found)
                table.add_section()
    Console(width=130).print(table)


def _child(contender: str, folder: Path, method: str, steps: int, data: str) -> Timed:
    words = [contender, str(folder), method, str(steps), data]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.training", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{contender}, {folder.name}, {method}: {done.stderr[-3000:]}")
    return Timed(**json.loads(done.stdout.splitlines()[-1]))


def _check(shape: str, method: str, found: dict[str, list[Timed]]) -> None:
    expected = found["ftmatrix"][0].losses
    for name, runs in found.items():
        for run in runs:
            apart = max(abs(one - other) for one, other in zip(expected, run.losses, strict=True))
            if apart > AGREE:
                sys.exit(f"{shape} {method}: {name}'s losses lie {apart:.4f} from ours: not the same work")


def _add(table: Table, shape: str, method: str, found: dict[str, list[Timed]]) -> None:
    for name, runs in found.items():
        times = [seconds for run in runs for seconds in run.seconds]
        pairs = zip(times, (seconds for own in found["ftmatrix"] for seconds in own.seconds), strict=True)
        ratios = [theirs / own for theirs, own in pairs]  # of one step, on one batch, in one round
        peaks = [run.peak_bytes or 0 for run in runs]
        memory = statistics.median(peaks) / statistics.median(run.peak_bytes or 1 for run in found["ftmatrix"])
        table.add_row(
            shape,
            method,
            name,
            f"{1000 * statistics.median(times):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{statistics.median(peaks) / 2**20:,.0f}",
            f"{memory:.2f}",
            f"{runs[0].losses[-1]:.4f}",
        )


if __name__ == "__main__":
    name, where, how, count, data = sys.argv[1:]
    source = Banking77(name="banking77", path=data) if data else Pocket(name="pocket")
    timed = run_one(name, Path(where), METHODS[how], int(count), source.load().train)
    print(json.dumps(asdict(timed)))

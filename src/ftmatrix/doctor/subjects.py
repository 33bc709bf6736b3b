"""The cells that are run to prove a machine: small, and the same everywhere."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftmatrix.data import Message, Pocket
from ftmatrix.spec import Cell, cell_from, config_folder, register_schemas

METHODS = ("full", "lora", "qlora")
HEADER = ("text", "category")


@dataclass(frozen=True)
class Subject:
    """A model to prove, at a rate that suits all methods.

    It is trained on the first messages of the packaged intents: `train` and `test` of each of so many `intents`.
    """

    model: str
    lr: float
    intents: int
    train: int
    test: int
    batch_size: int
    threads: int | None = 1


POCKET = Subject("pocket-4m", 1e-3, intents=26, train=12, test=2, batch_size=16)
GEMMA = Subject("gemma3-270m-q4", 1e-4, intents=4, train=6, test=1, batch_size=8, threads=None)


def cells_of(subject: Subject, folder: Path, methods: Sequence[str] = METHODS) -> list[Cell]:
    """A cell of each method, in float32 so that a curve can be held against another device's.

    What they need and leave lies in `folder`.
    """
    from hydra import compose, initialize_config_dir

    data = folder / subject.model
    data.mkdir(parents=True, exist_ok=True)
    splits = Pocket(name="pocket").load()
    for name, messages, each in (("train", splits.train, subject.train), ("test", splits.test, subject.test)):
        with (data / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([HEADER, *((one.text, one.label) for one in _first(messages, subject.intents, each))])
    common = [
        f"model={subject.model}",
        f"lr={subject.lr}",
        "seed=0",
        "data=csv",
        f"data.path={data}",
        "training.epochs=1",
        f"training.batch_size={subject.batch_size}",
        "training.precision=fp32",
        "evaluation.forgetting=false",
        f"evaluation.batch_size={subject.batch_size}",
        f"work_dir={folder}",
        *([] if subject.threads is None else [f"threads={subject.threads}"]),
    ]
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = [compose("config", [*common, f"method={name}"], return_hydra_config=True) for name in methods]
    return [cell_from(config) for config in composed]


def _first(messages: Sequence[Message], intents: int, each: int) -> list[Message]:
    """So many messages of each of the first intents, by name."""
    labels = sorted({one.label for one in messages})[:intents]
    return [one for label in labels for one in [message for message in messages if message.label == label][:each]]

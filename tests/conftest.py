"""Shared parts: real models of a few thousand weights, real messages, cells that finish in a second."""

import csv
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from ftmatrix.data import Message, Pocket
from ftmatrix.lm import Framer, Framing
from ftmatrix.machine import Accelerator, Device, pick
from ftmatrix.models import PACKAGED
from ftmatrix.spec import Cell, cell_from, config_folder, expand, register_schemas

torch.set_num_threads(1)  # as cells of such small models have
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and processes that tests start: test files run side by side
os.environ.pop("COLUMNS", None)  # what runs them side by side sets it

POCKET = PACKAGED / "pocket-1m"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POCKET)


@pytest.fixture(scope="session")
def cpu() -> Accelerator:
    return pick(Device.cpu)


@pytest.fixture(scope="session")
def messages() -> tuple[Message, ...]:
    """Real messages of four intents."""
    intents = ("card_arrival", "card_delivery_estimate", "pin_change", "double_charge")
    return tuple(message for message in Pocket(name="pocket").load().train if message.label in intents)[:160]


@pytest.fixture
def framer(tokenizer: Any, messages: tuple[Message, ...]) -> Framer:
    return Framer(Framing(), tokenizer, sorted({message.label for message in messages}))


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """Two architectures with random weights, saved as a hub would: Gemma 3 (tied) and Llama (not tied)."""
    torch.manual_seed(0)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    models = {
        "gemma": Gemma3ForCausalLM(Gemma3TextConfig(**common, sliding_window=16)),
        "llama": LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=False)),
    }
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp("models") / f"tiny-{name}"
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def data_folder(tmp_path: Path, messages: tuple[Message, ...]) -> Path:
    """A CSV folder of 96 training and 32 test messages."""
    return write_data(tmp_path / "messages", messages)


@pytest.fixture(scope="session")
def messages_folder(tmp_path_factory: pytest.TempPathFactory, messages: tuple[Message, ...]) -> Path:
    """The same, for tests that write nothing into it."""
    return write_data(tmp_path_factory.mktemp("data") / "messages", messages)


def write_data(folder: Path, messages: tuple[Message, ...]) -> Path:
    folder.mkdir()
    write_csv(folder / "train.csv", messages[:96])
    write_csv(folder / "test.csv", messages[96:128])
    return folder


def write_csv(path: Path, messages: tuple[Message, ...]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "category"))
        writer.writerows((message.text, message.label) for message in messages)


@pytest.fixture
def make_cell(hydra_config: Callable[..., Any]) -> Callable[..., Cell]:
    """A cell from Hydra overrides, composed as the command line would."""
    return lambda *overrides: cell_from(hydra_config(*overrides))


@pytest.fixture
def hydra_config() -> Iterator[Callable[..., Any]]:
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield lambda *overrides: compose("config", expand(list(overrides)), return_hydra_config=True)


@pytest.fixture(scope="session")
def adapters_preloaded() -> None:
    """Has the one server from which this process's cells are forked import all that any of them needs."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["ftmatrix.process.preload", "ftmatrix.process.preload_adapters"]
    )
    forkserver.ensure_running()


@pytest.fixture
def quick_cell(
    make_cell: Callable[..., Cell], data_folder: Path, tmp_path: Path, adapters_preloaded: None
) -> Callable[..., Cell]:
    """A cell on the small data folder that trains for one epoch and tracks in a store of its own."""
    return lambda *overrides: make_cell(
        "data=csv",
        f"data.path={data_folder}",
        "training.epochs=1",
        "report=false",
        f"work_dir={tmp_path / 'work'}",
        f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}",
        *overrides,
    )

"""Forecast against measured peak memory: real cells of real shapes, with random weights.

Three methods x two models x two batch shapes, each in a process of its own on the device that is there. Beside the
shadow run stands the formula that the field goes by, so that it shows which of the two is better.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer

from benchmarks.shapes import SHAPES, build
from ftmatrix.data import Pocket
from ftmatrix.lm import Framer, Framing

BATCHES = (16, 4)
TRAINED = 64
"""Messages to train on, and to test on: enough for each batch shape, few enough for a minute a cell."""
WITHIN = 10
"""Per cent that a good forecast may be off."""
SETTINGS = ("training.epochs=1", "training.precision=fp32", "n_jobs=1", "study=memory")


def write_data(folder: Path) -> Path:
    """Few messages of few intents: what isn't training is soon over."""
    messages = [m for m in Pocket(name="pocket").load().train if m.label.startswith("card_")]
    for split, part in (("train", messages[:TRAINED]), ("test", messages[TRAINED : 2 * TRAINED])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *((m.text, m.label) for m in part)])
    return folder


def formula(run: Run, data: Path, path: Path) -> float:
    """Bytes that the rules of thumb come to: weights, gradients, Adam's two moments, activations, logits.

    Activations: 34 bytes a token, layer and hidden unit in 16 bits with attention that keeps no scores, twice that in
    32 (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2).
    """
    figures, settings = run.data.metrics, run.data.params
    config = AutoConfig.from_pretrained(path)
    embedding = config.vocab_size * config.hidden_size
    linear = figures["parameters"] - embedding
    weights = embedding * 4 + linear * (0.5 if run.data.tags["method"] == "qlora" else 4)
    trained = figures["trainable_parameters"] * 12
    adapters = figures["trainable_parameters"] * 4 if run.data.tags["method"] != "full" else 0
    with (data / "train.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    framer = Framer(Framing(), AutoTokenizer.from_pretrained(path), sorted({row["category"] for row in texts}))
    longest = max(len(prompt) for prompt in framer.prompts([row["text"] for row in texts])) + framer.longest_label
    rows = int(settings["training.batch_size"])
    activations = rows * longest * config.hidden_size * config.num_hidden_layers * 34 * 2
    logits = rows * framer.longest_label * config.vocab_size * 4
    return float(weights + adapters + trained + activations + logits)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = write_data(folder)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        for name in SHAPES:
            grid = ("method=full,lora,qlora", f"training.batch_size={','.join(map(str, BATCHES))}", "lr=1e-5")
            source = ("model=local", f"model.path={build(folder, name)}", "data=csv", f"data.path={data}")
            subprocess.run(
                [Path(sys.executable).with_name("ftmatrix"), *grid, *source, *SETTINGS],
                cwd=folder,
                env=os.environ | {"MLFLOW_TRACKING_URI": uri},
                check=True,
            )
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = client.search_experiments(filter_string="name = 'memory'")
        runs = client.search_runs([experiment.experiment_id], "tags.complete = 'true'")
        names = ("model", "method", "batch", "measured MiB", "shadow MiB", "error %", "formula MiB", "error %")
        table = Table(*names, title="Peak memory while training: forecast and measured")
        table_evaluate = Table(*names[:-2], title="Peak memory while evaluating")
        errors: dict[str, list[float]] = {"shadow run": [], "formula": [], "shadow run of the evaluation": []}
        for run in sorted(runs, key=lambda run: (run.data.tags["model"], run.data.tags["method"])):
            figures, tags = run.data.metrics, run.data.tags
            measured, evaluated = figures["peak_bytes_train"], figures["peak_bytes_evaluate"]
            shadow, rule = figures["forecast_bytes_train"], formula(run, data, folder / tags["model"])
            foretold = figures["forecast_bytes_evaluate"]
            compared = ((shadow, measured), (rule, measured), (foretold, evaluated))
            for found, (forecast, true) in zip(errors.values(), compared, strict=True):
                found.append(100 * (forecast / true - 1))
            cells = [f"{value / 2**20:,.0f}" for value in (measured, shadow, rule, evaluated, foretold)]
            wrong = [f"{found[-1]:+.1f}" for found in errors.values()]
            named = (tags["model"], tags["method"], run.data.params["training.batch_size"])
            table.add_row(*named, cells[0], cells[1], wrong[0], cells[2], wrong[1])
            table_evaluate.add_row(*named, cells[3], cells[4], wrong[2])
    console = Console(width=110)
    console.print(table)
    console.print(table_evaluate)
    for way, found in errors.items():
        good = sum(abs(error) <= WITHIN for error in found)
        console.print(f"{way}: {good} of {len(found)} within {WITHIN} %, worst {max(found, key=abs):+.1f} %")


if __name__ == "__main__":
    main()

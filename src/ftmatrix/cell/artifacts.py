"""The files of one cell: configuration, environment, figures, predictions, confusion matrix, weights."""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ftmatrix.cell.model_card import model_card
from ftmatrix.cell.run import Trained
from ftmatrix.cell.secondary import Secondary
from ftmatrix.data import INVALID
from ftmatrix.errors import ModelError
from ftmatrix.machine import VISIBLE
from ftmatrix.models import parameters_in
from ftmatrix.records import CellResult, Evaluation, to_json
from ftmatrix.roles import plain
from ftmatrix.spec import PACKAGE, ReadyCell
from ftmatrix.text import no_formula

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "mlflow", "hydra-core", "ftmatrix")
"""Packages whose versions are recorded with every run."""


def write_facts(ready: ReadyCell, folder: Path) -> None:
    """The resolved configuration and the environment, known before the cell starts."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = plain(ready.cell)
    del settings["tracking"]  # where results go is no part of them, and may hold a password
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(environment(ready), indent=1) + "\n")


def write_files(ready: ReadyCell, trained: Trained, folder: Path) -> CellResult:
    """Everything the finished cell leaves: result, scores by intent, predictions, confusion matrix, weights.

    The result comes back with a note on what couldn't be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    secondary = Secondary()
    if (test := trained.result.test) is not None:
        write_evaluation(test, ready, folder)
        picture = folder / "confusion.png"
        secondary("confusion.png", lambda: draw_confusion(test, ready.dataset.labels, ready.cell.title, picture))
    result = replace(trained.result, notes=(*trained.result.notes, *secondary.notes))
    (folder / "result.json").write_text(to_json(result) + "\n")
    if ready.cell.save_model:
        save_weights(ready, trained, folder / "model")
    return result


def save_weights(ready: ReadyCell, trained: Trained, folder: Path) -> None:
    """Save the adapter, or the whole model, with its tokenizer.

    Raises:
        ModelError: less was written than was trained.
    """
    model: PreTrainedModel = trained.model  # type: ignore[assignment]
    adapters = getattr(model, "peft_config", {})
    for adapter in adapters.values():  # the base by its name, not by this machine's folder
        adapter.base_model_name_or_path = ready.cell.model.hub_id or ready.cell.model.path or ready.cell.model.name
        adapter.revision = ready.checkpoint.revision if ready.cell.model.hub_id else None
    no_lookup: dict[str, Any] = {"save_embedding_layers": False} if adapters else {}  # PEFT would ask the hub for it
    model.save_pretrained(folder, state_dict=trained.weights and dict(trained.weights), **no_lookup)
    trained.framer.tokenizer.save_pretrained(folder)
    card = model_card(ready, trained.result, trained.framer)
    (folder / "README.md").write_text(card, encoding="utf-8")  # PEFT's own knows neither prompt nor labels
    saved, expected = sum(map(parameters_in, folder.glob("*.safetensors"))), trained.result.trainable_parameters or 0
    if saved < expected:
        raise ModelError(f"save_model: {saved:,} weights were written, of {expected:,} that were trained")


def write_evaluation(evaluation: Evaluation, ready: ReadyCell, folder: Path) -> None:
    """Predictions, figures by intent and the confusion matrix, as CSV."""
    predictions = evaluation.predictions
    rows = [(p.text, p.label, p.answer, p.constrained, p.correct, p.valid, f"{p.nll:.6g}") for p in predictions]
    _write_csv(
        folder / "predictions.csv",
        ("text", "label", "answer", "constrained_answer", "correct", "valid", "label_nll"),
        rows,
    )
    intents = [
        (i.intent, f"{i.precision:.4f}", f"{i.recall:.4f}", f"{i.f1:.4f}", i.support) for i in evaluation.intents
    ]
    _write_csv(folder / "intents.csv", ("intent", "precision", "recall", "f1", "support"), intents)
    labels = ready.dataset.labels
    matrix = [(label, *row) for label, row in zip(labels, evaluation.confusion, strict=True)]
    _write_csv(folder / "confusion.csv", ("gold", *labels, INVALID), matrix)


def draw_confusion(evaluation: Evaluation, labels: Sequence[str], title: str, path: Path) -> None:
    """The confusion matrix as a heat map of each gold intent's share, the diagonal included."""
    shares = [[cell / max(1, sum(row)) for cell in row] for row in evaluation.confusion]
    side = max(5.0, 0.17 * len(labels) + 2)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    size = 8 if len(labels) <= 30 else 5
    axes.set_xticks(range(len(labels) + 1), [*labels, INVALID], rotation=90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_xlabel("answer")
    axes.set_ylabel("gold intent")
    axes.set_title(f"{title}\n{evaluation.accuracy:.1%} of {evaluation.messages} test messages right", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the gold intent's messages", shrink=0.6)
    FigureCanvasAgg(figure).print_png(str(path))


def environment(ready: ReadyCell) -> dict[str, object]:
    """Versions, device, model commit and data digest: what it would take to run the cell again."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": versions,
        "device": ready.accelerator.kind,
        "device_name": ready.device,
        "device_memory_bytes": ready.accelerator.memory_bytes,
        "cards": os.environ.get(VISIBLE.get(ready.accelerator.device, "")),
        "threads": ready.threads,
        "cores": os.cpu_count(),
        "precision": ready.precision.value,
        "precision_reason": ready.precision_reason,
        "model_revision": ready.checkpoint.revision,
        "data_source": ready.data_source,
        "data_digest": ready.dataset.digest,
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """The git commit of this program where it runs from a checkout of its own; it ends in -dirty after changes."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=5, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([[no_formula(value) for value in row] for row in (header, *rows)])

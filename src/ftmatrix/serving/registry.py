"""The best cell of a study, registered in MLflow's model registry."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from ftmatrix.arms import Quantization
from ftmatrix.errors import ConfigError
from ftmatrix.records import Row, to_json
from ftmatrix.serving.intent_model import FACTS, WEIGHTS, ServedCell
from ftmatrix.store import Store

CARRIED = ("accuracy", "accuracy_constrained", "val_accuracy", "macro_f1", "peak_bytes_train", "forgetting")
"""Metrics that a model version has as tags, beside those of the run that it links to."""


def register_best(store: Store, name: str) -> tuple[Row, str]:
    """Register the cell with the highest validation accuracy among those that keep their weights; it and its version.

    Raises:
        ConfigError: no cell keeps its weights, those that do answer to different data sets, or the name is none.
    """
    if not name.strip() or set(name) & set("/:"):
        raise ConfigError(f"--name={name}: a model's name in MLflow has neither / nor :")
    rows = [row for row in store.cells() if row.completed]
    kept = [row for row in rows if row.keeps_weights]
    if not kept:
        raise ConfigError(f"{store.study}: no cell keeps its weights; {_way_out(rows)}")
    if len(data := sorted({row.data for row in kept})) > 1:
        raise ConfigError(
            f"{store.study}: cells of {' and '.join(data)} keep their weights, whose accuracies aren't comparable; "
            "run the data set to be served in a study of its own"
        )
    best = max(kept, key=_rank)
    with TemporaryDirectory() as scratch:
        version = _register(store, best, name, Path(scratch))
    return best, version


def _rank(row: Row) -> tuple[float, float]:
    return (row.metric("val_accuracy") or 0.0, -(row.metric("val_nll") or 0.0))


def _way_out(rows: list[Row]) -> str:
    if not rows:
        return "run a sweep with save_model=true first"
    best = max(rows, key=_rank)
    return (
        f"the best one so far runs again and keeps them with save_model=true: method={best.method} "
        f"model={best.model} lr={best.lr:g} seed={best.seed}"
    )


def _register(store: Store, row: Row, name: str, scratch: Path) -> str:
    import mlflow

    mlflow.set_tracking_uri(store.uri)
    cell = scratch / "cell"
    cell.mkdir()
    shutil.move(store.client.download_artifacts(row.run_id, "model", str(scratch)), cell / WEIGHTS)
    settings = yaml.safe_load(
        Path(store.client.download_artifacts(row.run_id, "config.yaml", str(scratch))).read_text(encoding="utf-8")
    )
    (cell / FACTS).write_text(to_json(_served(store, row, settings, adapted=_is_adapter(cell))), encoding="utf-8")
    with mlflow.start_run(run_id=row.run_id):
        logged = mlflow.pyfunc.log_model(
            name="served",
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"cell": str(cell)},
            pip_requirements=["torch", "transformers", "peft", "mlflow"],
            registered_model_name=name,
        )
    version = str(logged.registered_model_version)
    for metric in CARRIED:
        if (value := row.metric(metric)) is not None:
            store.client.set_model_version_tag(name, version, metric, f"{value:.6g}")
    return version


def _is_adapter(cell: Path) -> bool:
    return (cell / WEIGHTS / "adapter_config.json").exists()


def _served(store: Store, row: Row, settings: dict[str, Any], *, adapted: bool) -> ServedCell:
    result = store.whole_result(row)
    assert result.test is not None
    framing, base = settings["framing"], settings["model"]
    if base["hub_id"] is not None:
        base["revision"] = row.facts["model.revision"]  # the commit, whatever the branch is by now
    return ServedCell(
        labels=tuple(score.intent for score in result.test.intents),
        template=framing["template"],
        spaces_for_underscores=framing["spaces_for_underscores"],
        max_length=framing["max_length"],
        end=framing.get("end"),
        precision=str(result.precision).split()[0],
        base=base if adapted else None,
        quantize=settings["method"].get("quantize", Quantization.none.value),
    )

"""Cells that keep their weights: the best of a study, and its files as what answers messages needs them."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from ftmatrix.arms import Quantization
from ftmatrix.errors import ConfigError
from ftmatrix.records import Row, best_of, to_json
from ftmatrix.serving.intent_model import FACTS, WEIGHTS, IntentModel, ServedCell
from ftmatrix.store import Store


def best_kept(store: Store) -> Row:
    """The cell with the highest validation accuracy among those that keep their weights.

    Raises:
        ConfigError: no cell keeps its weights, or those that do answer to different data sets.
    """
    rows = [row for row in store.cells() if row.completed]
    kept = [row for row in rows if row.keeps_weights]
    if len(data := sorted({row.data for row in kept})) > 1:
        raise ConfigError(
            f"{store.study}: cells of {' and '.join(data)} keep their weights, whose accuracies aren't comparable; "
            "run the data set to be served in a study of its own"
        )
    if (best := best_of(kept)) is None:
        raise ConfigError(f"{store.study}: no cell keeps its weights; {_way_out(rows)}")
    return best


def run_of(store: Store, run_id: str) -> Row:
    """The cell of a run.

    Raises:
        ConfigError: the study has no such run, or it isn't a cell's.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        raise ConfigError(f"run_id={run_id}: no such run in {store.shown}") from error
    if run.info.experiment_id != store.experiment_id or run.data.tags.get("kind") != "cell":
        raise ConfigError(f"run_id={run_id}: no cell of the study {store.study}; `ftmatrix.results` lists them")
    return store.rows([run_id])[0]


def load_kept(store: Store, row: Row, folder: Path) -> IntentModel:
    """A cell that answers messages, on the device there is. What lies in `folder` is needed no more afterwards.

    Raises:
        ConfigError: the cell keeps no weights.
        ModelError: the base model under an adapter isn't here and can't be fetched.
    """
    if not row.keeps_weights:
        raise ConfigError(f"run {row.run_id}: keeps no weights; run the cell again with save_model=true")
    model = IntentModel()
    model.load(bring(store, row, folder))
    return model


def bring(store: Store, row: Row, folder: Path) -> Path:
    """Download a cell's weights, and write down what has to be known to answer as it did; the folder of both."""
    cell = folder / "cell"
    cell.mkdir()
    shutil.move(store.client.download_artifacts(row.run_id, "model", str(folder)), cell / WEIGHTS)
    settings = yaml.safe_load(
        Path(store.client.download_artifacts(row.run_id, "config.yaml", str(folder))).read_text(encoding="utf-8")
    )
    (cell / FACTS).write_text(to_json(_served(store, row, settings, adapted=_is_adapter(cell))), encoding="utf-8")
    return cell


def _way_out(rows: list[Row]) -> str:
    if (best := best_of(rows)) is None:
        return "run a sweep with save_model=true first"
    return (
        f"the best one so far runs again and keeps them with save_model=true: method={best.method} "
        f"model={best.model} lr={best.lr:g} seed={best.seed}"
    )


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

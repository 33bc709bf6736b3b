"""The best cell of a study, registered in MLflow's model registry."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ftmatrix.errors import ConfigError
from ftmatrix.records import Row
from ftmatrix.serving.kept import best_kept, bring
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
    best = best_kept(store)
    with TemporaryDirectory() as folder:
        version = _register(store, best, name, bring(store, best, Path(folder)))
    return best, version


def _register(store: Store, row: Row, name: str, cell: Path) -> str:
    import mlflow

    mlflow.set_tracking_uri(store.uri)
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

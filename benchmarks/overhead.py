"""Seconds that a cell costs beyond its own work (data, model load, training, evaluation).

A grid of short cells runs through the real command; a cell's overhead is the lifetime of its run in MLflow less the
seconds that the cell itself measured. The first cell also waits for the libraries to be imported, once.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

GRID = ("method=full,lora,qlora", "lr=1e-3,2e-3", "data.limit=200", "data.test_limit=60", "training.epochs=1")


def measure(n_jobs: int) -> list[float]:
    """Overhead in seconds of each cell of the grid, in the order in which they started."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        subprocess.run(
            [Path(sys.executable).with_name("ftmatrix"), *GRID, f"hydra.launcher.n_jobs={n_jobs}", "study=overhead"],
            cwd=folder,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            check=True,
            capture_output=True,
        )
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = client.search_experiments(filter_string="name = 'overhead'")
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'cell'", order_by=["attributes.start_time"])
        return [
            (run.info.end_time - run.info.start_time) / 1000
            - sum(run.data.metrics[f"seconds_{part}"] for part in ("setup", "train", "evaluate"))
            for run in runs
        ]


def main() -> None:
    """Print the overhead of the first cell and of the later ones."""
    table = Table(title=f"overhead of a cell, seconds ({os.cpu_count()} cores)", title_justify="left")
    for name in ("n_jobs", "first cell", "later cells, median", "later cells, most"):
        table.add_column(name, justify="right")
    for n_jobs in (1, 2):
        first, *later = measure(n_jobs)
        table.add_row(str(n_jobs), f"{first:.1f}", f"{statistics.median(later):.2f}", f"{max(later):.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

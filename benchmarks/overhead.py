"""Seconds that a cell costs beyond its own work (data, model load, training, evaluation), and what side by side gives.

The same grid of short cells runs through the real command with each launcher: ours, and Hydra's basic, joblib and
submitit's local one, under which every cell has a process of its own as well (they call `ftmatrix` once a cell).
Overhead is the whole command's time, its start included, less what the cells themselves measured: once for a command of
one cell, and then for each further one of a command of twelve. The launchers take turns, round after round.

ARGS="overhead rounds=2 launchers=cells,joblib" narrows it. The peers have to be installed
(`pip install hydra-joblib-launcher hydra-submitit-launcher`).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

ONE = ("method=qlora", "lr=1e-3", "seed=0")
GRID = ("method=full,lora,qlora", "lr=1e-3,2e-3", "seed=0,1")
SMALL = ("data.limit=800", "data.test_limit=300", "training.epochs=1", "report=false", "study=overhead")
PEERS = ("basic", "joblib", "submitit_local")
JOBLIB = (
    "hydra/launcher=joblib",
    "hydra.launcher._target_=hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
)
SUBMITIT = (
    "hydra/launcher=submitit_local",
    "hydra.launcher._target_=hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra.launcher.n_jobs=1",  # Hydra takes null for a key that isn't there
    *(f"~hydra.launcher.{ours}" for ours in ("cluster", "folder", "n_jobs", "settings")),
    "+hydra.launcher.submitit_folder=jobs/%j",
    "+hydra.launcher.timeout_min=60",
    "+hydra.launcher.cpus_per_task=1",
    "+hydra.launcher.tasks_per_node=1",
    "+hydra.launcher.nodes=1",
    "+hydra.launcher.name=cell",
)
"""Hydra's own launchers, under the names that ours have taken."""
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "cells, one at a time": ("n_jobs=1",),
    "cells, two at a time": ("n_jobs=2",),
    "basic": ("hydra/launcher=basic",),
    "joblib, one at a time": (*JOBLIB, "hydra.launcher.n_jobs=1"),
    "joblib, two at a time": (*JOBLIB, "hydra.launcher.n_jobs=2"),
    "submitit_local, one at a time": (*SUBMITIT, "hydra.sweeper.max_batch_size=1"),
    "submitit_local, two at a time": (*SUBMITIT, "hydra.sweeper.max_batch_size=2"),
}


@dataclass(frozen=True)
class Measured:
    """One command: its seconds, the seconds that its cells worked, and how many they were."""

    seconds: float
    work: float
    cells: int

    @property
    def overhead(self) -> float:
        """Seconds beyond the cells' own, where they ran one at a time."""
        return self.seconds - self.work


def further(one: Measured, many: Measured) -> float:
    """Seconds of overhead for each cell but the first."""
    return (many.overhead - one.overhead) / (many.cells - one.cells)


def measure(settings: tuple[str, ...]) -> Measured:
    """Run cells under a launcher, in a folder and a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        began = time.perf_counter()
        done = subprocess.run(
            [Path(sys.executable).with_name("ftmatrix"), *SMALL, *settings],
            cwd=folder,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - began
        assert b"cells go to" not in done.stdout  # which is what our own engines say
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = client.search_experiments(filter_string="name = 'overhead'")
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'cell' AND tags.complete = 'true'")
        parts = [run.data.metrics[f"seconds_{part}"] for run in runs for part in ("setup", "train", "evaluate")]
        return Measured(seconds, sum(parts), len(runs))


def main() -> None:
    """Print what each launcher costs a cell, and what two cells at a time give."""
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    wanted = options.get("launchers", ",".join(("cells", *PEERS))).split(",")
    chosen = [name for name in LAUNCHERS if name.partition(",")[0] in wanted]
    found: dict[str, list[tuple[Measured, Measured]]] = {name: [] for name in chosen}
    for turn in range(int(options.get("rounds", "2"))):
        at = turn % len(chosen)
        for name in chosen[at:] + chosen[:at]:
            try:
                found[name].append((measure((*ONE, *LAUNCHERS[name])), measure((*GRID, *LAUNCHERS[name]))))
            except subprocess.CalledProcessError as error:  # a peer that can't run the grid is told, and left out
                print(f"{name}: {error.stderr.decode().strip().splitlines()[-1:]}", flush=True)
                continue
            for last in found[name][-1]:
                print(f"{name}: {last.cells} in {last.seconds:.1f} s, {last.work:.1f} of it their own", flush=True)
    cells = found[chosen[0]][0][1].cells
    title = f"{cells} cells under each launcher ({os.cpu_count()} cores)"
    table = Table("launcher", title=title, title_justify="left")
    for column in ("seconds", "overhead of one cell, s", "of each further one", "time, paired (least to most)"):
        table.add_column(column, justify="right")
    for name, runs in found.items():
        if len(runs) < len(found[chosen[0]]):
            table.add_row(name, "failed")
            continue
        ratios = [run.seconds / own.seconds for (_, run), (_, own) in zip(runs, found[chosen[0]], strict=True)]
        alone = "two" not in name
        table.add_row(
            name,
            f"{statistics.median(many.seconds for _, many in runs):.1f}",
            f"{statistics.median(one.overhead for one, _ in runs):.1f}",
            f"{statistics.median(further(*pair) for pair in runs):.2f}" if alone else "",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

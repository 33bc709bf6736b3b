"""What grows with a store and with the data: time a cell, time of a report, tokens a second, peak memory.

A store of 10,000 runs is made of one real cell's, copied row by row under other rates and seeds. Then real sweeps of
10 and of 200 cells run in that very study, and its report is made; last, one cell trains on once to ten times the data.

ARGS="growth runs=10000 cells=10,200" narrows it.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

STUDY = "growth"
SMALL = ("data.limit=100", "data.test_limit=60", "training.epochs=1", "report=false", f"study={STUDY}")
RATES, METHODS = 40, ("full", "lora", "qlora")
SIZES = (150, 500, 1500)
"""Messages to train on, in the last part."""


def command(folder: Path, *words: str) -> float:
    """Seconds that a real command takes in a folder with a store of its own."""
    began = time.perf_counter()
    subprocess.run(
        [Path(sys.executable).with_name("ftmatrix"), *words],
        cwd=folder,
        env=os.environ | {"MLFLOW_TRACKING_URI": store(folder)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def multiply(folder: Path, runs: int) -> None:
    """Copy the store's only cell until there are so many: three methods, 40 rates, and seeds."""
    database = sqlite3.connect(folder / "mlflow.db")
    (original,) = database.execute("SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'cell'").fetchone()
    tables = ("runs", "params", "tags", "metrics", "latest_metrics")
    columns = {table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")] for table in tables}
    for number in range(runs):
        copy = uuid.uuid4().hex
        for table, names in columns.items():
            kept = ", ".join(names)
            taken = ", ".join("?" if name == "run_uuid" else name for name in names)
            database.execute(
                f"INSERT INTO {table} ({kept}) SELECT {taken} FROM {table} WHERE run_uuid = ?", (copy, original)
            )
        method = METHODS[number % len(METHODS)]
        lr = 10 ** (-4 + (number // len(METHODS)) % RATES / 20)
        seed = 1000 + number // len(METHODS) // RATES
        settings = {"lr": f"{lr:.6g}", "seed": str(seed), "method": method}
        for table in ("params", "tags"):
            for key, value in settings.items():
                database.execute(f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ?", (value, copy, key))
        for key in ("fingerprint", "record"):
            database.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (copy[:16], copy, key))
        database.execute("UPDATE latest_metrics SET value = value + ? WHERE run_uuid = ?", (number % 97 / 1e4, copy))
    database.commit()
    database.close()


def sweeps(folder: Path, counts: list[int]) -> Table:
    table = Table(
        "cells", "seconds", "seconds a cell", title="Sweeps in the full store, n_jobs=2", title_justify="left"
    )
    for turn, cells in enumerate(counts):
        seeds = ",".join(str(100_000 * (turn + 1) + number) for number in range(cells))
        took = command(folder, "lr=1e-3", f"seed={seeds}", "n_jobs=2", *SMALL)
        table.add_row(str(cells), f"{took:.1f}", f"{took / cells:.2f}")
    return table


def data(folder: Path) -> Table:
    command(folder, "lr=1e-3", f"data.limit={','.join(map(str, SIZES))}", "n_jobs=1", "study=data", *SMALL[1:4])
    client = MlflowClient(tracking_uri=store(folder))
    (experiment,) = client.search_experiments(filter_string="name = 'data'")
    table = Table("messages", "tokens/s", "peak MiB", title="One cell on more data", title_justify="left")
    runs = client.search_runs([experiment.experiment_id], "tags.complete = 'true'")
    for run in sorted(runs, key=lambda run: int(run.data.params["data.limit"])):
        figures = run.data.metrics
        peak = figures["peak_bytes_train"] / 2**20
        table.add_row(run.data.params["data.limit"], f"{figures['tokens_per_second']:,.0f}", f"{peak:,.0f}")
    return table


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    runs = int(options.get("runs", "10000"))
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command(folder, "lr=1e-3", "seed=0", *SMALL)
        empty = command(folder, "lr=1e-3", "seed=0", *SMALL)
        multiply(folder, runs)
        console.print(f"A sweep whose one cell is done: {empty:.1f} s in a store of 1 run", highlight=False)
        full = command(folder, "lr=1e-3", "seed=0", *SMALL)
        console.print(f"the same in a store of {runs:,} runs: {full:.1f} s", highlight=False)
        console.print(f"report over {runs:,} runs: {command(folder, 'report', STUDY):.1f} s", highlight=False)
        console.print(sweeps(folder, [int(count) for count in options.get("cells", "10,200").split(",")]))
        console.print(data(folder))


if __name__ == "__main__":
    main()

"""What an engine and the waiting for it cost: thousands of jobs that do nothing, handed over as a sweep does it.

ARGS="jobs count=10000 engines=ray,joblib" narrows it. Ray has to be installed.
"""

import os
import sys
import time

from rich.console import Console
from rich.table import Table

from ftmatrix.process import Engine, JoblibEngine, RayEngine, run_jobs
from ftmatrix.spec import Cell


def nothing(cell: Cell) -> str:
    return str(cell.seed)


def engine_of(name: str) -> Engine:
    if name == "ray":
        return RayEngine(address=None, cpus=1, gpus=0, memory=None, n_jobs=None)
    return JoblibEngine(n_jobs=os.cpu_count() or 1)


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    count = int(options.get("count", "10000"))
    cells = [Cell(lr=1e-3, seed=seed) for seed in range(count)]
    title = f"{count:,} jobs that do nothing ({os.cpu_count()} cores)"
    table = Table("engine", title=title, title_justify="left")
    for column in ("seconds to start", "seconds in all", "ms a job", "CPU ms a job, waiting side"):
        table.add_column(column, justify="right")
    for name in options.get("engines", "ray").split(","):
        engine = engine_of(name)
        began = time.perf_counter()
        engine.open()
        opened, busy = time.perf_counter(), time.process_time()
        ends = run_jobs(engine, nothing, cells, lambda _, __: None)
        took, worked = time.perf_counter() - opened, time.process_time() - busy
        assert ends == [str(cell.seed) for cell in cells]
        engine.close()
        table.add_row(
            name, f"{opened - began:.1f}", f"{took:.1f}", f"{1e3 * took / count:.2f}", f"{1e3 * worked / count:.2f}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

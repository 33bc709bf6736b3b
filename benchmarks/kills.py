"""At least 50 kills (SIGKILL) at random moments of sweeps of 12 cells, each gone on with until it is done.

Who dies is drawn each time: the sweep's process, one below it (a running cell, the process that cells are forked
from), or all at once. After each kill of the sweep, and whenever it says that cells are left, the same command is given
again. Then what MLflow holds is compared with an undisturbed sweep: outcomes, verdicts, every figure that isn't a time
or a peak of memory, and every step's loss; and each cell has to be complete exactly once.
"""

import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console
from rich.table import Table

from ftmatrix.store.runs import is_complete

KILLS = 50
CELLS = 12
GRID = (
    "method=full,lora,qlora",
    "lr=1e-3,3e-3",
    "seed=0,1",
    "data.test_limit=100",
    "training.epochs=3",
    "checkpoint_minutes=0.05",
    "n_jobs=2",
    "study=kills",
)
LONGEST_PEACE = 20.0
"""Seconds between two kills, at most: about as long as a sweep needs to start and to get some steps done."""
MEASURED_ANEW = ("seconds", "peak_", "tokens_per_second", "other_bytes", "forecast_error", "system/")
"""What two runs of one cell differ in: times and memory."""


@dataclass
class Sweep:
    """A sweep in a folder and a store of its own."""

    folder: Path
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def start(self) -> psutil.Popen:
        self.starts += 1
        with (self.folder / "said.log").open("a") as said:
            return psutil.Popen(
                [Path(sys.executable).with_name("ftmatrix"), *GRID],
                cwd=self.folder,
                env=os.environ | {"MLFLOW_TRACKING_URI": self.uri},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def complete(self) -> dict[str, Run]:
        """The complete runs by their names, which tell a grid's cells apart; one that is doubled ends the benchmark."""
        client = MlflowClient(tracking_uri=self.uri)
        (experiment,) = client.search_experiments(filter_string="name = 'kills'")
        runs = list(client.search_runs([experiment.experiment_id]))
        cells = [run for run in runs if run.data.tags.get("kind") == "cell"]
        complete = [run for run in cells if is_complete(run)]
        if again := [name for name, count in Counter(run.info.run_name for run in complete).items() if count > 1]:
            sys.exit(f"complete more than once: {', '.join(again)}")
        if open_runs := [run.info.run_name for run in runs if run.info.status == "RUNNING"]:
            sys.exit(f"still open: {', '.join(open_runs)}")
        return {run.info.run_name: run for run in complete}

    def losses(self, run: Run) -> list[tuple[int, float]]:
        """Each step's loss, in order."""
        points = MlflowClient(tracking_uri=self.uri).get_metric_history(run.info.run_id, "step/loss")
        return sorted((point.step, point.value) for point in points)


def disturb(sweep: Sweep, chance: random.Random, most: int) -> None:
    """Give the command until it succeeds, and kill something again and again, `most` times."""
    while True:
        process = sweep.start()
        while sweep.kills.total() < most and process.is_running():
            if ends_within(process, chance.uniform(0, LONGEST_PEACE)):
                break
            kill_one(process, chance, sweep.kills)
        if process.wait() == 0:
            return


def ends_within(process: psutil.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        return False
    return True


def kill_one(process: psutil.Popen, chance: random.Random, kills: Counter[str]) -> None:
    """Kill the sweep, one of the processes below it, or all of them."""
    below = process.children(recursive=True)
    kind = chance.choices(("sweep", "below", "all"), weights=(2, 2, 1))[0] if below else "sweep"
    victims = {"sweep": [process], "below": below and [chance.choice(below)], "all": [process, *below]}[kind]
    killed = 0
    for victim in victims:
        with suppress(psutil.NoSuchProcess):  # went by itself in this very moment
            victim.kill()
            killed += 1
    kills[kind] += killed > 0
    if kind != "below":
        process.wait()


def differences(undisturbed: Sweep, killed: Sweep) -> list[str]:
    """What the two tables do not have in common, a line each."""
    expected, found = undisturbed.complete(), killed.complete()
    if expected.keys() != found.keys():
        return [f"cells: {sorted(expected.keys() ^ found.keys())}"]
    lines = []
    for name, run in expected.items():
        other = found[name]
        for tag in ("outcome", "stability", "reason"):
            if run.data.tags.get(tag) != other.data.tags.get(tag):
                lines.append(f"{name}: {tag} {run.data.tags.get(tag)!r}, {other.data.tags.get(tag)!r}")
        figures, others = lasting(run), lasting(other)
        lines += [
            f"{name}: {metric} {figures.get(metric)}, {others.get(metric)}"
            for metric in sorted(figures.keys() | others.keys())
            if not same(figures.get(metric), others.get(metric))
        ]
        losses, other_losses = undisturbed.losses(run), killed.losses(other)
        if len(losses) != len(other_losses) or not all(map(same_step, losses, other_losses)):
            lines.append(f"{name}: the steps' losses")
    return lines


def lasting(run: Run) -> dict[str, float]:
    """The figures that have to be equal."""
    return {
        name: value
        for name, value in run.data.metrics.items()
        if not name.removeprefix("step/").startswith(MEASURED_ANEW)
    }


def same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=1e-6))


def same_step(one: tuple[int, float], other: tuple[int, float]) -> bool:
    return one[0] == other[0] and same(one[1], other[1])


def main() -> None:
    """Kill until there were enough kills, and print what became of the cells."""
    chance = random.Random(0)
    started = time.monotonic()
    kills: Counter[str] = Counter()
    sweeps = starts = unequal = 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Sweep(Path(folder) / "undisturbed")
        undisturbed.folder.mkdir()
        disturb(undisturbed, chance, most=0)
        while kills.total() < KILLS:
            killed = Sweep(Path(folder) / f"killed-{sweeps}")
            killed.folder.mkdir()
            disturb(killed, chance, most=KILLS - kills.total())
            for line in (found := differences(undisturbed, killed)):
                print(line)
            unequal += bool(found)
            kills += killed.kills
            starts += killed.starts
            sweeps += 1
    table = Table(title="Kills", title_justify="left")
    for name in (
        "kills",
        "of the sweep",
        "below it",
        "of all",
        "sweeps",
        "cells",
        "starts",
        "unequal tables",
        "minutes",
    ):
        table.add_column(name, justify="right")
    figures = (kills.total(), kills["sweep"], kills["below"], kills["all"], sweeps, sweeps * CELLS, starts, unequal)
    table.add_row(*map(str, figures), f"{(time.monotonic() - started) / 60:.0f}")
    Console(width=110).print(table)
    if unequal:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""What a person sees while a sweep runs: one bar for the whole and one a cell, or plain lines without a terminal."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ftmatrix.process.listening import Listener
from ftmatrix.records import CellResult, Outcome, Phase, Step
from ftmatrix.roles import varying
from ftmatrix.spec import Cell, ReadyCell
from ftmatrix.store import parameters_of
from ftmatrix.text import duration

PLAIN_WIDTH = 160
"""Columns of what is printed where there is no terminal to ask."""


def open_console() -> Console:
    """The terminal, or plain lines of a fixed width (COLUMNS sets another)."""
    live = sys.stdout.isatty() and "CI" not in os.environ  # whatever colours are asked for
    width = PLAIN_WIDTH if not sys.stdout.isatty() and "COLUMNS" not in os.environ else None
    return Console(width=width, force_interactive=None if live else False)


class Display(Listener):
    """Follows the cells of one sweep: bars on a terminal, elsewhere a line as cells begin and end.

    `quiet` leaves both out; what a person has to know is told nevertheless.
    """

    def __init__(self, console: Console, cells: Sequence[ReadyCell], *, quiet: bool = False) -> None:
        self.console, self.total, self.quiet = console, len(cells), quiet
        self.done = 0
        self._started = time.monotonic()
        self._best: dict[str, tuple[float, float, str]] = {}
        self._name = names(cells)
        self._waiting: set[str] = set()
        self._cells: dict[str, _CellLine] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_interactive,
        )
        steps = sum(ready.steps for ready in cells)  # by steps, so that the time left says something early on
        self._sweep = self._progress.add_task("[bold]sweep", total=steps, state=f"0/{self.total} cells")

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw while the sweep runs."""
        self._started = time.monotonic()
        with self._progress:
            yield

    def began(self, ready: ReadyCell) -> None:
        """A cell's process was started."""
        task = self._progress.add_task(escape(self._name[ready.fingerprint]), total=ready.steps, state="starting")
        self._cells[ready.fingerprint] = _CellLine(task, time.monotonic())
        if not self.console.is_interactive:
            self._follow(f"start  {self._name[ready.fingerprint]}")

    def waits(self, ready: ReadyCell) -> None:
        """Another sweep runs the cell."""
        if ready.fingerprint not in self._waiting:
            self._follow(f"wait   {self._name[ready.fingerprint]}  another sweep runs it")
        self._waiting.add(ready.fingerprint)

    def taken(self, ready: ReadyCell) -> None:
        """Another sweep has finished the cell."""
        self._progress.advance(self._sweep, ready.steps)
        self._count()
        self._follow(f"[{self.done}/{self.total}]  {self._name[ready.fingerprint]}  taken from another sweep")

    def tell(self, line: str) -> None:
        """A line for the person who watches. What can't be printed, as on a full disk, ends no sweep."""
        with suppress(OSError):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def entered(self, ready: ReadyCell, phase: Phase) -> None:
        """A cell entered a phase."""
        self._progress.update(self._cells[ready.fingerprint].task, state=phase)

    def stepped(self, ready: ReadyCell, steps: tuple[Step, ...]) -> None:
        """Optimizer steps were done."""
        line, done = self._cells[ready.fingerprint], steps[-1].index + 1
        self._progress.update(line.task, completed=done, state=f"train {done}/{ready.steps}  loss {steps[-1].loss:.3f}")
        self._progress.advance(self._sweep, len(steps))
        line.steps_done = done

    def ended(self, ready: ReadyCell, result: CellResult) -> None:
        """A cell has its result."""
        line = self._cells.pop(ready.fingerprint)
        self._progress.remove_task(line.task)
        self._progress.advance(self._sweep, ready.steps - line.steps_done)
        if result.validation and result.test:
            said = f"{result.test.accuracy:.1%}, {self._name[ready.fingerprint]}"
            found = (result.validation.accuracy, -result.validation.nll, said)  # as `best_of` chooses
            data = ready.cell.data.title
            self._best[data] = max(self._best.get(data, found), found)
        self._count()
        took = time.monotonic() - line.started
        ended = f"[{self.done}/{self.total}]  {self._name[ready.fingerprint]}  {summary(result)}  {took:.0f} s"
        self._follow(ended + self._outlook(ready.cell.data.title))

    def _outlook(self, data: str) -> str:
        """What the bars of a terminal tell anyway: the best cell on that data so far, and how long the rest takes."""
        task = self._progress.tasks[self._sweep]
        if self.console.is_interactive or self.done == self.total or not task.completed:
            return ""
        elapsed = time.monotonic() - self._started
        left = elapsed * ((task.total or 0.0) / task.completed - 1)
        best = f"; best {self._best[data][-1]}" if data in self._best else ""
        if task.completed >= (task.total or 0.0):
            return f"{best}; the others are being evaluated"
        return f"{best}; about {duration(left)} left"

    def _follow(self, line: str) -> None:
        """A line that says how far the sweep is."""
        if not self.quiet:
            self.tell(line)

    def _count(self) -> None:
        self.done += 1
        best = "".join(f"  best {escape(name)}" for *_, name in self._best.values())
        self._progress.update(self._sweep, state=f"{self.done}/{self.total} cells{best}")


class JobDisplay:
    """Follows cells that run elsewhere: a line as each ends."""

    def __init__(self, console: Console, total: int, *, quiet: bool) -> None:
        self.console, self.total, self.quiet = console, total, quiet
        self.done = 0
        self._started = time.monotonic()

    def tell(self, line: str) -> None:
        """A line for the person who watches."""
        if not self.quiet:
            with suppress(OSError):
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def ended(self, cell: Cell, end: object) -> None:
        """A cell's job is over; `end` is its run, or says why there is none."""
        self.done += 1
        elapsed = time.monotonic() - self._started
        left = f"; about {duration(elapsed / self.done * (self.total - self.done))} left"
        came_to = f"run {end[:8]}" if isinstance(end, str) else "lost"
        self.tell(f"[{self.done}/{self.total}]  {cell.title}  {came_to}{left if self.done < self.total else ''}")


@dataclass
class _CellLine:
    task: TaskID
    started: float
    steps_done: int = 0


def names(cells: Sequence[ReadyCell]) -> dict[str, str]:
    """What each cell is called, by fingerprint: its title, and the settings that tell it from others of that title."""
    by_title: dict[str, list[ReadyCell]] = {}
    for ready in cells:
        by_title.setdefault(ready.cell.title, []).append(ready)
    found = {}
    for title, namesakes in by_title.items():
        settings = [parameters_of(ready.cell) for ready in namesakes]
        varied = sorted(varying([settings]))
        for ready, each in zip(namesakes, settings, strict=True):
            found[ready.fingerprint] = " ".join([title, *(f"{key}={each[key]}" for key in varied if key in each)])
    return found


def summary(result: CellResult) -> str:
    """A result in a few words."""
    if result.outcome is not Outcome.COMPLETED or result.test is None or result.stability is None:
        return f"{result.outcome.value}: {result.reason}"
    return f"{result.stability.verdict.value}  accuracy {result.test.accuracy:.1%}"

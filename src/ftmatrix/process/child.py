"""A cell's process, from the inside: it runs the cell, tells of it as it goes, and leaves its files.

A cell that works on several devices has several: the first tells and writes, and hears of the others' failures.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeVar, cast

from ftmatrix.machine import Rank, is_disk_full
from ftmatrix.records import CellResult, Outcome, Phase, Step
from ftmatrix.spec import ReadyCell
from ftmatrix.store import CellLog

REPORT_SECONDS = 0.5
"""Steps are sent to the parent in batches, at most this long after the first of them."""
Written = TypeVar("Written")

ROOM_SECONDS = 600
"""How long a finished cell waits for room on a full disk."""
FIRST_WORD_SECONDS = 2
"""How long a cell's first process that failed waits for the word of one whose failure may be the cause."""
LAST_WORD_SECONDS = 60
"""How long another one stays when it has failed; its cell's first process ends sooner, and it is ended then."""
OTHER_DIED = 70
"""Exit code of a cell's first process when another has died."""


@dataclass(frozen=True)
class Began:
    """A running cell entered a phase."""

    phase: Phase


@dataclass(frozen=True)
class Stepped:
    """Optimizer steps that were done since the last report."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Ended:
    """The cell's result; nothing follows."""

    result: CellResult


Event = Began | Stepped | Ended


def main(
    ready: ReadyCell, rank: Rank, connection: Connection, others: Sequence[Connection], shown: dict[str, str]
) -> None:
    """The process. `connection` leads to the parent, or to the first process of the cell, which has `others`.

    `shown` is the environment that shows it the GPUs that it may use: drivers read it as they start.
    """
    os.environ |= shown
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    _die_with_the_sweep()
    _be_the_first_to_go()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    send = _Sender(connection)
    _listen(others, send)
    try:
        _redirect_output(ready)
        reporter = _Reporter(send, CellLog(ready.folder)) if rank.is_first else _Silent()
        result = _run(ready, rank, reporter, stop.is_set)
    except BaseException as error:
        result = CellResult(Outcome.CRASHED, f"{type(error).__name__} while starting: {error}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if others and _is_failure(result):
        time.sleep(FIRST_WORD_SECONDS)
    send(Ended(result))
    if not rank.is_first and _is_failure(result):
        time.sleep(LAST_WORD_SECONDS)  # the others are to hear of it before they miss it
    connection.close()


def tell_of_fork(connection: Connection) -> None:
    """A process that says whether it could start a GPU."""
    import torch

    connection.send(not (torch.cuda._is_in_bad_fork() or torch.xpu._is_in_bad_fork()))


class _Sender:
    """Sends from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._connection.send(event)


def _listen(others: Sequence[Connection], send: Callable[[Event], None]) -> None:
    """End this process, whatever it waits for, when another of the cell's fails or dies."""

    def listen() -> None:
        left = list(others)
        while left:
            for connection in cast(list[Connection], wait(left)):
                try:
                    ended: Ended = connection.recv()
                except (EOFError, OSError):
                    os._exit(OTHER_DIED)
                if _is_failure(ended.result):
                    send(ended)
                    os._exit(0)
                left.remove(connection)

    threading.Thread(target=listen, name="listen to the other processes", daemon=True).start()


def _is_failure(result: CellResult) -> bool:
    return result.outcome not in (Outcome.COMPLETED, Outcome.INTERRUPTED)


def _redirect_output(ready: ReadyCell) -> None:
    """Send what this process prints to the cell's log."""
    log = os.open(ready.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def _run(ready: ReadyCell, rank: Rank, reporter: "_Reporter | _Silent", stopping: Callable[[], bool]) -> CellResult:
    from transformers.utils.logging import disable_progress_bar

    from ftmatrix.cell import CellRun, failure, write_facts, write_files
    from ftmatrix.lm import Group

    disable_progress_bar()
    # before the clock starts: what a forked process has already is no part of the time of one that starts anew
    import ftmatrix.process.preload

    if ready.cell.method.trains_adapters:
        import ftmatrix.process.preload_adapters  # noqa: F401
    run: CellRun | None = None
    try:
        if rank.is_first:
            write_facts(ready, ready.files)
        run = CellRun(ready, reporter, stopping, Group(rank, sharded=ready.cell.shard))
        trained = run.run()
        if isinstance(reporter, _Silent):
            return CellResult(Outcome.COMPLETED)
        reporter.flush()
        result = _with_room(lambda: write_files(ready, trained, ready.files), stopping)
        _with_room(lambda: reporter.log.end(result), stopping)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        with contextlib.suppress(OSError):
            reporter.flush()
        return failure(error, run)
    return result


class _Reporter:
    """Sends phases at once and steps in batches, so that reporting costs a step nothing; writes steps down as well."""

    def __init__(self, send: Callable[[Event], None], log: CellLog) -> None:
        self.send, self.log = send, log
        self.held: list[Step] = []
        self.sent_at = time.monotonic()

    def __call__(self, happened: Phase | Step) -> None:
        if isinstance(happened, Step):
            self.held.append(happened)
            if time.monotonic() - self.sent_at > REPORT_SECONDS:
                self.flush()
        else:
            self.flush()
            self.send(Began(happened))

    def flush(self) -> None:
        held, self.held = self.held, []
        self.sent_at = time.monotonic()
        if held:
            self.log.add(held)
            self.send(Stepped(tuple(held)))


class _Silent:
    """What a cell's other processes report: the first says it all."""

    def __call__(self, happened: Phase | Step) -> None:
        pass

    def flush(self) -> None:
        pass


def _be_the_first_to_go() -> None:
    """Where memory runs out, have the kernel end a cell and not the sweep (Linux, proc(5): oom_score_adj)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_the_sweep() -> None:
    """End this process when the one that started it is gone; the server that it was forked from may live on."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="die with the sweep", daemon=True).start()


def _with_room(write: Callable[[], Written], stopping: Callable[[], bool]) -> Written:
    """Write files; where the disk is full, wait for room: what was computed isn't lost for that."""
    until = time.monotonic() + ROOM_SECONDS
    while True:
        try:
            return write()
        except Exception as error:
            if not is_disk_full(error) or stopping() or time.monotonic() > until:
                raise
            time.sleep(1)

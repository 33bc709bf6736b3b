"""One cell in a process of its own: its peak memory is true, and its death costs no other cell."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from ftmatrix.files import is_disk_full
from ftmatrix.hardware import Device
from ftmatrix.journal import CellLog
from ftmatrix.preparation import ReadyCell
from ftmatrix.records import CellResult, Outcome, Phase, Step

REPORT_SECONDS = 0.5
"""Steps are sent to the parent in batches, at most this long after the first of them."""
ROOM_SECONDS = 600
"""How long a finished cell waits for room on a full disk."""


LARGE_BLOCK_BYTES = 2**17
SMALL_MODELS_LARGE_BLOCK_BYTES = 2**20
"""Blocks from this size on are given back at once, smaller ones are kept for the next: quicker, but the heap splinters
and never shrinks. In a small model nearly all blocks are small, and little is lost by keeping them."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


def warm_up(cells: Sequence[ReadyCell]) -> None:
    """Start the server that cells are forked from. It imports what they need once, while the caller goes on."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # look for a GPU without touching it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT and bitsandbytes ask a GPU driver for its devices as they are imported: not in a process that will fork
    adapted = any(cell.cell.method.trains_adapters and cell.accelerator.device is Device.cpu for cell in cells)
    preloaded = ["ftmatrix.preload", *(["ftmatrix.preload_adapters"] if adapted else [])]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server inherits this: Ctrl-C is the caller's affair
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


class CellProcess:
    """A cell that runs in a child. `connection` becomes readable when there is an event, or when the child is gone."""

    def __init__(self, ready: ReadyCell) -> None:
        context = multiprocessing.get_context("forkserver")
        self.ready = ready
        self.connection, theirs = context.Pipe(duplex=False)
        self.phase: Phase | None = None
        self._has_trained = False
        self._kernel_kills = kernel_kills()
        self._process = context.Process(target=_main, args=(ready, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> Event:
        """The next event. The death of the child is one too: a result that says what killed it."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            event = Ended(self._died())
        if isinstance(event, Began):
            self.phase = event.phase
            self._has_trained |= event.phase is Phase.TRAIN
        return event

    def close(self) -> None:
        """Wait for a child that has ended, and let go of its resources."""
        self._process.join()
        self._process.close()
        self.connection.close()

    def ask_to_stop(self) -> None:
        """Have the child save its progress and end; it does so between two steps of its training."""
        self._process.terminate()

    def last_words(self, until: float) -> CellResult | None:
        """How a child ends that was asked to stop; None where it has nothing to lose yet, or doesn't end by `until`."""
        while self._has_trained and self.connection.poll(max(0.0, until - time.monotonic())):
            if isinstance(event := self.receive(), Ended):
                return event.result
        return None

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def _died(self) -> CellResult:
        code = self._process.exitcode or 0
        doing = self.phase.doing if self.phase else "starting"
        log = f"see {self.ready.log}"
        if code >= 0:
            return CellResult(Outcome.CRASHED, f"the process exited with code {code} while {doing}; {log}")
        name = signal.Signals(-code).name
        if name == "SIGKILL" and kernel_kills() > self._kernel_kills:
            reason = f"memory ran out while {doing} (the kernel killed the process)"
            return CellResult(Outcome.OUT_OF_MEMORY, reason, self.phase, forecast=self.ready.forecast)
        return CellResult(Outcome.CRASHED, f"the process died of {name} while {doing}; {log}")


def kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since the machine started (Linux; else 0)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _main(ready: ReadyCell, connection: Connection) -> None:
    """The child: run the cell, send what happens, leave log and files in the cell's folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    _die_with_the_sweep()
    _be_the_first_to_go()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    steady_allocator(SMALL_MODELS_LARGE_BLOCK_BYTES if ready.checkpoint.is_small else LARGE_BLOCK_BYTES)
    try:
        _redirect_output(ready)
        reporter = _Reporter(connection, CellLog(ready.folder))
        result = _run(ready, reporter, stop.is_set)
    except BaseException as error:
        result = CellResult(Outcome.CRASHED, f"{type(error).__name__} while starting: {error}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    connection.send(Ended(result))
    connection.close()


def _redirect_output(ready: ReadyCell) -> None:
    """Send what this process prints to the cell's log."""
    log = os.open(ready.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def _run(ready: ReadyCell, reporter: "_Reporter", stopping: Callable[[], bool]) -> CellResult:
    from transformers.utils.logging import disable_progress_bar

    from ftmatrix.artifacts import write_facts, write_files
    from ftmatrix.runner import CellRun, failure

    disable_progress_bar()
    if ready.cell.method.trains_adapters:  # before the clock starts: preloaded on a CPU, so no part of a cell's time
        import ftmatrix.preload_adapters  # noqa: F401
    run: CellRun | None = None
    try:
        write_facts(ready, ready.files)
        run = CellRun(ready, reporter, stopping)
        trained = run.run()
        reporter.flush()
        _with_room(lambda: write_files(ready, trained, ready.files), stopping)
        _with_room(lambda: reporter.log.end(trained.result), stopping)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        with contextlib.suppress(OSError):
            reporter.flush()
        return failure(error, run)
    return trained.result


class _Reporter:
    """Sends phases at once and steps in batches, so that reporting costs a step nothing; writes steps down as well."""

    def __init__(self, connection: Connection, log: CellLog) -> None:
        self.connection, self.log = connection, log
        self.held: list[Step] = []
        self.sent_at = time.monotonic()

    def __call__(self, happened: Phase | Step) -> None:
        if isinstance(happened, Step):
            self.held.append(happened)
            if time.monotonic() - self.sent_at > REPORT_SECONDS:
                self.flush()
        else:
            self.flush()
            self.connection.send(Began(happened))

    def flush(self) -> None:
        held, self.held = self.held, []
        self.sent_at = time.monotonic()
        if held:
            self.log.add(held)
            self.connection.send(Stepped(tuple(held)))


def steady_allocator(large_block_bytes: int) -> None:
    """Have glibc give large blocks back as soon as they are freed, so that a CPU's peaks are true (mallopt(3)).

    Left alone it raises its own threshold as blocks come and go: what a cell's peak reads then depends on their order,
    and is up to half as much again as its tensors ever take. Elsewhere than on glibc nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(option, large_block_bytes)


def _be_the_first_to_go() -> None:
    """Where memory runs out, have the kernel end a cell and not the sweep (Linux, proc(5): oom_score_adj)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_the_sweep() -> None:
    """End this process when the one that started it is gone; the server that it was forked from may live on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="die with the sweep", daemon=True).start()


def _with_room(write: Callable[[], None], stopping: Callable[[], bool]) -> None:
    """Write files; where the disk is full, wait for room: what was computed isn't lost for that."""
    until = time.monotonic() + ROOM_SECONDS
    while True:
        try:
            return write()
        except Exception as error:
            if not is_disk_full(error) or stopping() or time.monotonic() > until:
                raise
            time.sleep(1)

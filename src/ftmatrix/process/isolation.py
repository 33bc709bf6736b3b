"""One cell in a process of its own: its peak memory is true, and its death costs no other cell."""

import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import RLock
from types import ModuleType
from typing import Any

from ftmatrix.errors import ConfigError, UnsupportedError
from ftmatrix.machine import VISIBLE, Card, Device, Rank, resolve, visible
from ftmatrix.process import child
from ftmatrix.process.child import OTHER_DIED, Began, Ended, Event, Stepped
from ftmatrix.process.deaths import failed_allocation, kernel_kills
from ftmatrix.records import CellResult, Outcome, Phase
from ftmatrix.spec import Cell, ReadyCell

FORKSERVER, SPAWN = "forkserver", "spawn"
ALONE = RLock()
"""Threads start processes one after the other."""
DEATH_SECONDS = 10
"""How long it may take to see which process of a cell has died."""


def warm_up_early(cells: Sequence[Cell]) -> None:
    """Start the server before anything is known of the cells, where they are to run on a CPU.

    Finding out what has to be run takes as long as the server's imports, which are in vain if all is done.
    """
    with suppress(UnsupportedError):  # which is said of each cell in its row
        if all(resolve(cell.device) is Device.cpu for cell in cells):
            _start_server(adapted=any(cell.method.trains_adapters for cell in cells))


def warm_up(cells: Sequence[ReadyCell]) -> None:
    """Start the server that cells are forked from. It imports what they need once, while the caller goes on.

    Raises:
        ConfigError: FTMATRIX_START_METHOD is unknown.
    """
    # PEFT and bitsandbytes ask a GPU driver for its devices as they are imported: not in a process that will fork
    on_cpu = all(cell.accelerator.device is Device.cpu for cell in cells)
    _start_server(adapted=on_cpu and any(cell.cell.method.trains_adapters for cell in cells))


def _start_server(*, adapted: bool) -> None:
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # look for a GPU without touching it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name: what fits in the rehearsal is to fit to the end
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if preferred_start() == SPAWN:
        return
    preloaded = ["ftmatrix.process.preload", *(["ftmatrix.process.preload_adapters"] if adapted else [])]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
    with _interrupts_held():
        forkserver.ensure_running()


def preferred_start() -> str:
    """How cells' processes start on this system: from a server that has all imports, or anew.

    Apple's libraries can't be used after a fork. FTMATRIX_START_METHOD asks for one of the two.

    Raises:
        ConfigError: it asks for another.
    """
    asked = os.environ.get("FTMATRIX_START_METHOD", FORKSERVER if sys.platform == "linux" else SPAWN)
    if asked not in (FORKSERVER, SPAWN):
        raise ConfigError(f"FTMATRIX_START_METHOD={asked}: must be {FORKSERVER} or {SPAWN}")
    return asked


def start_method(device: Device) -> str:
    """How the process of a cell on a device starts."""
    preferred = preferred_start()
    return SPAWN if preferred == FORKSERVER and device in VISIBLE and not forks_well() else preferred


@cache
def forks_well() -> bool:
    """Whether what is forked from the server can start a GPU. It can't where counting them has started the driver there
    (MIG names, no NVML).
    """
    context: Any = multiprocessing.get_context(FORKSERVER)
    listening, speaking = context.Pipe(duplex=False)
    asked = context.Process(target=child.tell_of_fork, args=(speaking,), daemon=True)
    with _without_main():
        asked.start()
    speaking.close()
    try:
        return bool(listening.recv())
    except EOFError:
        return False
    finally:
        asked.join()
        listening.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """What starts within never hears of Ctrl-C, which is the caller's affair; the caller does, afterwards."""
    resource_tracker.ensure_running()  # it starts with the first child, and starting it lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """What starts within doesn't import the program's main module, as multiprocessing would have it: a user's script
    that calls `ftmatrix.run` needs no guard against being run once more in each cell.
    """
    with ALONE:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class CellProcess:
    """A cell that runs in a child. `connection` becomes readable when there is an event, or when the child is gone.

    A cell on several devices has a child for each; the first speaks for all. The children see `cards` alone of the
    machine's GPUs. `main` is what they run in the place of `child.main`.
    """

    def __init__(self, ready: ReadyCell, cards: Sequence[Card] = (), main: Callable[..., None] | None = None) -> None:
        context: Any = multiprocessing.get_context(start_method(ready.accelerator.device))
        self.ready, self.cards = ready, tuple(cards)
        self.connection, theirs = context.Pipe(duplex=False)
        self.phase: Phase | None = None
        self._has_trained = False
        self._kernel_kills = kernel_kills()
        self._meeting = ready.folder / f"meeting-{uuid.uuid4().hex}"
        size = ready.cell.devices
        ranks = [Rank(index, size, self._meeting) for index in range(size)]
        pipes = [context.Pipe(duplex=False) for _ in ranks[1:]]
        heard = [listening for listening, _ in pipes]
        speaking = [theirs, *(their for _, their in pipes)]
        shown = visible(ready.accelerator.device, [card.name for card in cards])
        self._processes: list[BaseProcess] = [
            context.Process(
                target=main or child.main, args=(ready, rank, own, () if rank.index else heard, shown), daemon=True
            )
            for rank, own in zip(ranks, speaking, strict=True)
        ]
        try:
            with _interrupts_held(), _without_main():
                for process in self._processes:
                    process.start()
        except BaseException:
            for process in self._processes:
                if process.pid is not None:
                    process.kill()
            self.connection.close()
            raise
        finally:
            for connection in (*heard, *speaking):
                connection.close()

    @property
    def _first(self) -> BaseProcess:
        return self._processes[0]

    def receive(self) -> Event:
        """The next event. The death of the child is one too: a result that says what killed it."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            self._first.join()
            event = Ended(self._died())
        self._has_trained |= isinstance(event, Stepped)
        if isinstance(event, Began):
            self.phase = event.phase
        return event

    def close(self) -> None:
        """Wait for a child that has ended, and let go of its resources."""
        self._first.join()
        for process in self._processes:
            process.kill()  # those that lost the first, or only have to end
            process.join()
            process.close()
        self.connection.close()
        self._meeting.unlink(missing_ok=True)

    def ask_to_stop(self) -> None:
        """Have the child save its progress and end; it does so between two steps of its training."""
        self._first.terminate()

    def last_words(self, until: float) -> CellResult | None:
        """How a child ends that was asked to stop; None where it has nothing to lose yet, or doesn't end by `until`."""
        while self._has_trained and self.connection.poll(max(0.0, until - time.monotonic())):
            if isinstance(event := self.receive(), Ended):
                return event.result
        return None

    def kill(self) -> None:
        """End the child at once."""
        self._first.kill()
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._first.pid

    def _died(self) -> CellResult:
        code = self._first.exitcode or 0
        if code == OTHER_DIED:
            others = self._processes[1:]
            wait([process.sentinel for process in others], timeout=DEATH_SECONDS)
            code = next((process.exitcode for process in others if process.exitcode), code)
        doing = self.phase.doing if self.phase else "starting"
        log = f"see {self.ready.log}"
        if code >= 0:
            return CellResult(Outcome.CRASHED, f"the process exited with code {code} while {doing}; {log}")
        name = signal.Signals(-code).name
        if name == "SIGKILL" and kernel_kills() > self._kernel_kills:
            reason = f"memory ran out while {doing} (the kernel killed the process)"
            return CellResult(Outcome.OUT_OF_MEMORY, reason, self.phase, forecast=self.ready.forecast)
        if name == "SIGABRT" and (found := failed_allocation(self.ready.log)):
            reason = f"memory ran out while {doing} ({found})"
            return CellResult(Outcome.OUT_OF_MEMORY, reason, self.phase, forecast=self.ready.forecast)
        return CellResult(Outcome.CRASHED, f"the process died of {name} while {doing}; {log}")

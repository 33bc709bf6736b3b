"""Peak memory and seconds of the parts of a run, true on every device."""

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftmatrix.hardware import Accelerator, Device
from ftmatrix.records import PhasePeak


class MemoryMeter:
    """Peak memory per phase, in the terms of the device: allocator peaks on CUDA and XPU, samples on MPS, the resident
    set's high-water mark above `baseline_bytes` on a CPU.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.peaks: list[PhasePeak] = []
        self._read: Callable[[], PhasePeak] | None = None
        self.baseline_bytes = _resident_bytes() if accelerator.device is Device.cpu else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase. A phase entered twice keeps the higher peak."""
        self._forget_cache()
        measure = {Device.cpu: self._resident, Device.mps: self._sampled}.get(self.accelerator.device, self._allocator)
        with measure(name) as read:
            self._read = read
            try:
                yield
            finally:
                self._keep(read())
                self._read = None

    def take_up(self, peaks: Iterable[PhasePeak]) -> None:
        """Count the peaks of an earlier process of the same cell."""
        for peak in peaks:
            self._keep(peak)

    def so_far(self) -> tuple[PhasePeak, ...]:
        """The peaks until now, the present phase's too."""
        if self._read is not None:
            self._keep(self._read())
        return tuple(self.peaks)

    def _forget_cache(self) -> None:
        """Give back what an earlier phase left in a GPU's cache, or on the heap: it is no part of this one's peak."""
        gc.collect()
        if self.accelerator.device is Device.cpu:
            with suppress(OSError, AttributeError):  # elsewhere than on glibc (malloc_trim(3))
                ctypes.CDLL(None).malloc_trim(0)
        else:
            import torch

            getattr(torch, self.accelerator.kind).empty_cache()

    @contextmanager
    def _allocator(self, name: str) -> Iterator[Callable[[], PhasePeak]]:
        import torch

        memory = torch.cuda if self.accelerator.device is Device.cuda else torch.xpu
        memory.reset_peak_memory_stats()
        counts = f"{self.accelerator.kind} allocated"
        yield lambda: PhasePeak(name, memory.max_memory_allocated(), counts, memory.max_memory_reserved())

    @contextmanager
    def _resident(self, name: str) -> Iterator[Callable[[], PhasePeak]]:
        can_reset = _reset_resident_peak()

        def read() -> PhasePeak:
            peak = _resident_peak_bytes() if can_reset else None
            above = max(0, peak - self.baseline_bytes) if peak is not None and self.baseline_bytes is not None else None
            return PhasePeak(name, above, "resident set above the process's baseline")

        yield read

    @contextmanager
    def _sampled(self, name: str) -> Iterator[Callable[[], PhasePeak]]:
        import torch

        highest = torch.mps.driver_allocated_memory()
        done = threading.Event()

        def sample() -> None:
            nonlocal highest
            while not done.wait(0.01):
                highest = max(highest, torch.mps.driver_allocated_memory())

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            yield lambda: PhasePeak(name, highest, "mps driver allocation, sampled every 10 ms")
        finally:
            done.set()
            sampler.join()

    def _keep(self, peak: PhasePeak) -> None:
        before = next((kept for kept in self.peaks if kept.phase == peak.phase), None)
        if before is None:
            self.peaks.append(peak)
        elif (peak.peak_bytes or 0) > (before.peak_bytes or 0):
            self.peaks[self.peaks.index(before)] = peak


class Stopwatch:
    """Device-synchronised seconds of named parts."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.seconds: dict[str, float] = {}
        self._present: tuple[str, float] | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._present = (name, time.perf_counter())
        try:
            yield
        finally:
            self.accelerator.synchronize()
            self.seconds = self.so_far()
            self._present = None

    def take_up(self, seconds: dict[str, float]) -> None:
        """Count what an earlier process of the same cell spent; parts that it began anew count once."""
        self.seconds = self.seconds | {name: value for name, value in seconds.items() if name not in self.seconds}

    def so_far(self) -> dict[str, float]:
        """The seconds until now, the present part's too."""
        if self._present is None:
            return self.seconds
        name, started = self._present
        return self.seconds | {name: self.seconds.get(name, 0.0) + time.perf_counter() - started}


def _resident_bytes() -> int | None:
    return _status_bytes("VmRSS")


def _resident_peak_bytes() -> int | None:
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _reset_resident_peak() -> bool:
    """Set the resident set's high-water mark back to the present size (Linux, proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True

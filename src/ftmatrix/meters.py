"""Peak memory and seconds of the parts of a run, true on every device."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        self.baseline_bytes = _resident_bytes() if accelerator.device is Device.cpu else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase. A phase entered twice keeps the higher peak."""
        measure = {Device.cpu: self._resident, Device.mps: self._sampled}.get(self.accelerator.device, self._allocator)
        with measure(name):
            yield

    @contextmanager
    def _allocator(self, name: str) -> Iterator[None]:
        import torch

        memory = torch.cuda if self.accelerator.device is Device.cuda else torch.xpu
        memory.reset_peak_memory_stats()
        try:
            yield
        finally:
            counts = f"{self.accelerator.kind} allocated"
            self._keep(PhasePeak(name, memory.max_memory_allocated(), counts, memory.max_memory_reserved()))

    @contextmanager
    def _resident(self, name: str) -> Iterator[None]:
        can_reset = _reset_resident_peak()
        try:
            yield
        finally:
            peak = _resident_peak_bytes() if can_reset else None
            above = max(0, peak - self.baseline_bytes) if peak is not None and self.baseline_bytes is not None else None
            self._keep(PhasePeak(name, above, "resident set above the process's baseline"))

    @contextmanager
    def _sampled(self, name: str) -> Iterator[None]:
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
            yield
        finally:
            done.set()
            sampler.join()
            self._keep(PhasePeak(name, highest, "mps driver allocation, sampled every 10 ms"))

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

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.accelerator.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


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

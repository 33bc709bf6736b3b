"""Peak memory and seconds of the parts of a run, true on every device."""

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil

from ftmatrix.machine import Accelerator, Device, resident
from ftmatrix.records import PhasePeak

SAMPLE_SECONDS = 0.01


class MemoryMeter:
    """Peak memory per phase, in the terms of the device: allocator peaks on CUDA and XPU, samples on MPS, the resident
    set's high-water mark above `baseline_bytes` on a CPU, until `hurry`.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.peaks: list[PhasePeak] = []
        self._read: Callable[[], PhasePeak] | None = None
        self._in_a_hurry = False
        self.baseline_bytes = resident.resident_bytes() if accelerator.device is Device.cpu else None

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

    def hurry(self) -> None:
        """From now on speed counts: on a CPU the allocator keeps what is freed, if the machine has memory to spare.

        What comes then is no peak of the tensors any more, and counts as reserved. GPUs tell both at any time.
        """
        if self.accelerator.device is Device.cpu:
            self._in_a_hurry = resident.be_quick(max((peak.peak_bytes or 0 for peak in self.peaks), default=0))

    def add_earlier(self, peaks: Iterable[PhasePeak]) -> None:
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
            if not self._in_a_hurry:
                resident.be_steady()
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
        can_reset = resident.forget_peak()

        def read() -> PhasePeak:
            peak = resident.peak_bytes() if can_reset else None
            above = max(0, peak - self.baseline_bytes) if peak is not None and self.baseline_bytes is not None else None
            counts = "resident set above the process's baseline"
            return PhasePeak(name, None if self._in_a_hurry else above, counts, above)

        yield read

    @contextmanager
    def _sampled(self, name: str) -> Iterator[Callable[[], PhasePeak]]:
        import torch

        allocated, reserved = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        done = threading.Event()

        def sample() -> None:
            nonlocal allocated, reserved
            while not done.wait(SAMPLE_SECONDS):
                allocated = max(allocated, torch.mps.current_allocated_memory())
                reserved = max(reserved, torch.mps.driver_allocated_memory())  # with the pool that it keeps

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            yield lambda: PhasePeak(name, allocated, "mps allocated, sampled every 10 ms", reserved)
        finally:
            done.set()
            sampler.join()

    def _keep(self, peak: PhasePeak) -> None:
        before = next((kept for kept in self.peaks if kept.phase == peak.phase), None)
        if before is None:
            self.peaks.append(peak)
        else:
            sizes = (peak.peak_bytes, before.peak_bytes), (peak.reserved_bytes, before.reserved_bytes)
            highest, reserved = (max(filter(None, pair), default=pair[1]) for pair in sizes)
            self.peaks[self.peaks.index(before)] = replace(before, peak_bytes=highest, reserved_bytes=reserved)


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

    def add_earlier(self, seconds: dict[str, float]) -> None:
        """Count what an earlier process of the same cell spent; parts that it began anew count once."""
        self.seconds = self.seconds | {name: value for name, value in seconds.items() if name not in self.seconds}

    def so_far(self) -> dict[str, float]:
        """The seconds until now, the present part's too."""
        if self._present is None:
            return self.seconds
        name, started = self._present
        return self.seconds | {name: self.seconds.get(name, 0.0) + time.perf_counter() - started}


class Neighbours:
    """What other processes take of this machine's CPU cores meanwhile."""

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float | None:
        """Cores that others kept busy since this was made, as a mean; None where the system doesn't tell."""
        spans = [now - before for now, before in zip(self._now(), self._before, strict=True)]
        wall, busy, own = spans
        return max(busy - own, 0.0) / wall if wall > 0 and busy > 0 else None

    def _now(self) -> tuple[float, float, float]:
        """Seconds of the clock, of all cores at work, and of this process."""
        whole = psutil.cpu_times()
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        guests = getattr(whole, "guest", 0.0) + getattr(whole, "guest_nice", 0.0)  # they are counted as user's too
        return time.perf_counter(), sum(whole) - idle - guests, time.process_time()

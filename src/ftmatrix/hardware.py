"""The accelerator there is, the precision it suits, its memory meter and the seeds."""

import os
import platform
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ftmatrix.errors import UnsupportedError
from ftmatrix.records import PhasePeak

if TYPE_CHECKING:
    import torch


class Device(Enum):
    """Where cells run; `auto` takes the first that is there, in this order."""

    auto = "auto"
    cuda = "cuda"
    xpu = "xpu"
    mps = "mps"
    cpu = "cpu"


class Precision(Enum):
    """What weights, gradients and arithmetic are kept in. The same for every method of a comparison.

    fp32: everything in float32. mixed: trained weights and optimizer state in float32, arithmetic in bfloat16
    (autocast), frozen weights stored in bfloat16. bf16: everything in bfloat16. There is no fp16: it overflows
    Gemma 3's activations.
    """

    auto = "auto"
    fp32 = "fp32"
    mixed = "mixed"
    bf16 = "bf16"


@dataclass(frozen=True)
class Accelerator:
    """The device that a cell runs on. `memory_bytes` is its total memory."""

    device: Device
    name: str
    memory_bytes: int | None
    has_bf16: bool

    @property
    def kind(self) -> str:
        """The name that torch knows it by."""
        return self.device.value

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is true."""
        import torch

        if self.device is not Device.cpu:
            torch.accelerator.synchronize()

    def suitable(self, precision: Precision) -> tuple[Precision, str]:
        """The precision to use, and why."""
        if precision is not Precision.auto:
            return precision, "as configured"
        if self.device in (Device.cuda, Device.xpu) and self.has_bf16:
            return Precision.mixed, f"{self.name} has bfloat16 units"
        if self.device in (Device.cuda, Device.xpu):
            return Precision.fp32, f"{self.name} has no bfloat16 units"
        return Precision.fp32, f"float32 is the safe choice on {self.kind}"


def pick(wanted: Device = Device.auto) -> Accelerator:
    """The wanted device, or the best there is.

    Raises:
        UnsupportedError: the wanted device isn't here.
    """
    import torch

    available = {
        Device.cuda: torch.cuda.is_available(),
        Device.xpu: torch.xpu.is_available(),
        Device.mps: torch.backends.mps.is_available(),
        Device.cpu: True,
    }
    if wanted is Device.auto:
        wanted = next(device for device, here in available.items() if here)
    if not available[wanted]:
        here = ", ".join(device.value for device, there in available.items() if there)
        raise UnsupportedError(f"device={wanted.value} isn't available on this machine; available: {here}")
    match wanted:
        case Device.cuda:
            properties = torch.cuda.get_device_properties(0)
            has_bf16 = properties.major >= 8 or torch.version.hip is not None
            return Accelerator(wanted, properties.name, properties.total_memory, has_bf16)
        case Device.xpu:
            card = torch.xpu.get_device_properties(0)
            return Accelerator(wanted, card.name, card.total_memory, True)
        case Device.mps:
            return Accelerator(wanted, platform.processor() or "Apple", torch.mps.recommended_max_memory(), True)
        case _:
            return Accelerator(wanted, processor_name(), _host_memory_bytes(), False)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


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


def use_threads(count: int) -> None:
    """Bound the CPU threads of this process's tensor arithmetic."""
    import torch

    torch.set_num_threads(count)


def dtype_of(precision: Precision, *, trained: bool) -> "torch.dtype":
    """The dtype in which trained or frozen weights are stored."""
    import torch

    full = precision is Precision.fp32 or (precision is Precision.mixed and trained)
    return torch.float32 if full else torch.bfloat16


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


def processor_name() -> str:
    """The CPU's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _host_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None

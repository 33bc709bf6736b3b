"""The accelerator there is, the precision it suits, threads and seeds."""

import os
import platform
import random
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ftmatrix.errors import UnsupportedError

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


def use_threads(count: int) -> None:
    """Bound the CPU threads of this process's tensor arithmetic."""
    import torch

    torch.set_num_threads(count)


def dtype_of(precision: Precision, *, trained: bool) -> "torch.dtype":
    """The dtype in which trained or frozen weights are stored."""
    import torch

    full = precision is Precision.fp32 or (precision is Precision.mixed and trained)
    return torch.float32 if full else torch.bfloat16


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

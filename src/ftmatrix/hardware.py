"""The accelerator there is, the precision it suits, threads and seeds."""

import json
import os
import platform
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from ftmatrix import host
from ftmatrix.errors import UnsupportedError


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
    (autocast), frozen linear weights stored in bfloat16. bf16: everything in bfloat16. There is no fp16: it
    overflows Gemma 3's activations.
    """

    auto = "auto"
    fp32 = "fp32"
    mixed = "mixed"
    bf16 = "bf16"


@dataclass(frozen=True)
class Accelerator:
    """The device that a cell runs on: its memory in all, and what of it was free when it was looked at."""

    device: Device
    name: str
    memory_bytes: int | None
    has_bf16: bool
    free_bytes: int | None = field(default=None, compare=False)

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


@dataclass(frozen=True)
class Rank:
    """A process's place among the `size` of its cell: `meeting` is the file by which they find one another."""

    index: int = 0
    size: int = 1
    meeting: Path | None = None

    @property
    def is_first(self) -> bool:
        """Whether it is the one that reports and writes."""
        return self.index == 0


def pick(wanted: Device = Device.auto) -> Accelerator:
    """The wanted device, or the best there is. A GPU is asked by a child process: the caller never touches it.

    Raises:
        UnsupportedError: the wanted device isn't here.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counts GPUs without starting CUDA
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
    return ask_child(wanted) if wanted in (Device.cuda, Device.xpu) else describe(wanted)


def share_of(accelerator: Accelerator, devices: int) -> Accelerator:
    """One of several devices that work together. A CPU's processes share its memory.

    Raises:
        UnsupportedError: there aren't so many.
    """
    import torch

    if devices == 1:
        return accelerator
    if accelerator.device is Device.cpu:
        return divided(accelerator, devices)
    there = 1 if accelerator.device is Device.mps else getattr(torch, accelerator.kind).device_count()
    if devices > there:
        raise UnsupportedError(
            f"devices={devices}: {there} of device={accelerator.kind} here; device=cpu has processes"
        )
    all_of_them = [accelerator, *(ask_child(accelerator.device, index) for index in range(1, devices))]
    return replace(
        accelerator,
        has_bf16=all(one.has_bf16 for one in all_of_them),
        free_bytes=min((one.free_bytes for one in all_of_them if one.free_bytes is not None), default=None),
    )


def divided(accelerator: Accelerator, processes: int) -> Accelerator:
    """What each of several processes has of a CPU's free memory; a card is one process's alone."""
    if accelerator.device is not Device.cpu or accelerator.free_bytes is None:
        return accelerator
    return replace(accelerator, free_bytes=accelerator.free_bytes // processes)


def describe(device: Device, index: int = 0) -> Accelerator:
    """The facts of a device that is here. On a GPU this starts its driver in the calling process."""
    import torch

    match device:
        case Device.cuda:
            properties = torch.cuda.get_device_properties(index)
            has_bf16 = properties.major >= 8 or torch.version.hip is not None
            return Accelerator(
                device, properties.name, properties.total_memory, has_bf16, torch.cuda.mem_get_info(index)[0]
            )
        case Device.xpu:
            card = torch.xpu.get_device_properties(index)
            free_bytes = torch.xpu.mem_get_info(index)[0]
            return Accelerator(device, card.name, card.total_memory, has_bf16=True, free_bytes=free_bytes)
        case Device.mps:
            memory_bytes = torch.mps.recommended_max_memory()
            return Accelerator(device, platform.processor() or "Apple", memory_bytes, True, memory_bytes)
        case _:
            return Accelerator(device, host.processor_name(), host.memory_bytes(), False, host.free_bytes())


def imagine(device: Device, memory_bytes: int) -> Accelerator:
    """A card that isn't here, to plan for; `auto` imagines CUDA."""
    device = Device.cuda if device is Device.auto else device
    name = f"a {device.value} device with {memory_bytes / 2**30:g} GiB"
    return Accelerator(device, name, memory_bytes, has_bf16=device is not Device.cpu, free_bytes=memory_bytes)


def ask_child(device: Device, index: int = 0) -> Accelerator:
    """The facts of a device, found out by a process that ends at once.

    Raises:
        UnsupportedError: the device can't be started.
    """
    program = (
        "import json, dataclasses; from ftmatrix.hardware import Device, describe;"
        f"print(json.dumps(dataclasses.asdict(describe(Device.{device.value}, {index})) | {{'device': None}}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedError(f"device={device.value} can't be started: {done.stderr.strip().splitlines()[-1]}")
    return Accelerator(**(json.loads(done.stdout.splitlines()[-1]) | {"device": device}))


def seed_everything(seed: int, device: Device) -> None:
    """Seed Python, NumPy and torch, and have a GPU take the kernels that give the same sums each time."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    if device is not Device.cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(seed)


def use_threads(count: int) -> None:
    """Bound the CPU threads of this process's tensor arithmetic."""
    import torch

    torch.set_num_threads(count)

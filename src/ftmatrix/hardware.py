"""The accelerator there is, the precision it suits, threads and seeds."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ftmatrix import host
from ftmatrix.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

PROCESS_BYTES = 600 * 2**20
"""What a process takes beside its tensors: the driver's context on a GPU, the libraries' pages on a CPU."""
KERNELS_BYTES = 128 * 2**20
"""What of that is left where the free memory of a GPU is read by a process that has a context itself: kernels that are
loaded as they are needed."""
ANSWER_SECONDS = 120
"""How long a device may take to tell of itself."""


class Device(Enum):
    """Where cells run; `auto` takes the first that is there, in this order."""

    auto = "auto"
    cuda = "cuda"
    xpu = "xpu"
    mps = "mps"
    cpu = "cpu"


VISIBLE = {Device.cuda: "CUDA_VISIBLE_DEVICES", Device.xpu: "ZE_AFFINITY_MASK"}
"""The variables by which a process is shown some of a machine's GPUs alone. Ray and Slurm set them too."""


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
class Card:
    """One of a machine's GPUs: the name by which a process is shown it alone, and what of its memory was free."""

    name: str
    free_bytes: int


@dataclass(frozen=True)
class Accelerator:
    """The device that a cell runs on: its memory in all, and what of it was free when it was looked at.

    `beside_bytes` is what a process takes of that beside its tensors, `cards` all GPUs of its kind that are here.
    """

    device: Device
    name: str
    memory_bytes: int | None
    has_bf16: bool
    free_bytes: int | None = field(default=None, compare=False)
    beside_bytes: int = field(default=PROCESS_BYTES, compare=False)
    cards: tuple[Card, ...] = field(default=(), compare=False)

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
    if wanted not in VISIBLE:
        return describe(wanted)
    found = ask_child(wanted)
    alike = [(name, one) for name, one in zip(visible_names(wanted, len(found)), found, strict=True) if one == found[0]]
    cards = tuple(Card(name, one.free_bytes or 0) for name, one in alike)
    return replace(found[0], free_bytes=_most_free(cards, 1), cards=cards)


def visible_names(device: Device, count: int) -> list[str]:
    """What this process's GPUs are called where it was shown some of the machine's alone, else their numbers."""
    shown = os.environ.get(VISIBLE[device], "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return names[:count] if len(names) >= count else [str(index) for index in range(count)]


def visible(device: Device, names: Sequence[str]) -> dict[str, str]:
    """The environment of a process that is to see these cards alone."""
    return {VISIBLE[device]: ",".join(names)} if names and device in VISIBLE else {}


def is_there(device: Device, name: str) -> bool:
    """Whether a card, by its name, can still be started."""
    try:
        return bool(ask_child(device, visible(device, [name])))
    except UnsupportedError:
        return False


def _most_free(cards: Sequence[Card], count: int) -> int:
    """What each of so many cards has free at least, were the best taken."""
    return sorted((card.free_bytes for card in cards), reverse=True)[count - 1]


def share_of(accelerator: Accelerator, devices: int) -> Accelerator:
    """One of several devices that work together. A CPU's processes share its memory.

    Raises:
        UnsupportedError: there aren't so many.
    """
    if devices == 1:
        return accelerator
    if accelerator.device is Device.cpu:
        return divided(accelerator, devices)
    if devices > (there := len(accelerator.cards) or 1):
        raise UnsupportedError(
            f"devices={devices}: {there} of device={accelerator.kind} here; device=cpu has processes"
        )
    return replace(accelerator, free_bytes=_most_free(accelerator.cards, devices))


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
            free_bytes = torch.cuda.mem_get_info(index)[0]
            return Accelerator(
                device, properties.name, properties.total_memory, has_bf16, free_bytes, beside_bytes=KERNELS_BYTES
            )
        case Device.xpu:
            card = torch.xpu.get_device_properties(index)
            free_bytes = torch.xpu.mem_get_info(index)[0]
            return Accelerator(
                device, card.name, card.total_memory, True, free_bytes=free_bytes, beside_bytes=KERNELS_BYTES
            )
        case Device.mps:
            memory_bytes = torch.mps.recommended_max_memory()
            return Accelerator(device, host.processor_name(), memory_bytes, True, memory_bytes)
        case _:
            return Accelerator(device, host.processor_name(), host.memory_bytes(), False, host.free_bytes())


def imagine(device: Device, memory_bytes: int) -> Accelerator:
    """A card that isn't here, to plan for; `auto` imagines CUDA."""
    device = Device.cuda if device is Device.auto else device
    name = f"a {device.value} device with {memory_bytes / 2**30:g} GiB"
    return Accelerator(device, name, memory_bytes, has_bf16=device is not Device.cpu, free_bytes=memory_bytes)


def ask_child(device: Device, environment: Mapping[str, str] | None = None) -> list[Accelerator]:
    """The facts of each device of a kind, found out by a process that ends at once, with this added to its environment.

    Raises:
        UnsupportedError: the device can't be started.
    """
    program = (
        "import json, dataclasses; from ftmatrix.hardware import Device, count, describe;"
        f"found = [describe(Device.{device.value}, index) for index in range(count(Device.{device.value}))];"
        "print(json.dumps([dataclasses.asdict(one) | {'device': None, 'cards': ()} for one in found]))"
    )
    asked = [sys.executable, "-c", program]
    environ = os.environ | (environment or {})
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, env=environ, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(f"device={device.value} doesn't answer within {ANSWER_SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise UnsupportedError(f"device={device.value} can't be started: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    return [Accelerator(**(one | {"device": device, "cards": ()})) for one in found]


def count(device: Device) -> int:
    """How many devices of a kind there are."""
    import torch

    return int(getattr(torch, device.value).device_count()) if device in VISIBLE else 1


def seed_everything(seed: int, device: Device) -> None:
    """Seed Python, NumPy and torch, and have a GPU take the kernels that give the same sums each time."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    if device is not Device.cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # more than a warning: attention has a mode that only this turns on
        # what is filled with NaN first would be each weight that QLoRA dequantises, twice a step
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


def is_indeterministic(error: BaseException) -> bool:
    """Whether an operation says that it gives other sums each time on this device."""
    return isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error)


def allow_other_sums() -> None:
    """Take kernels that give other sums each time, where there are no others."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)


def use_threads(count: int) -> None:
    """Bound the CPU threads of this process's tensor arithmetic."""
    import torch

    torch.set_num_threads(count)


def autocast(accelerator: Accelerator, precision: Precision) -> "torch.autocast":
    """The arithmetic of a precision: bfloat16 autocast for mixed, none otherwise."""
    import torch

    return torch.autocast(accelerator.kind, torch.bfloat16, enabled=precision is Precision.mixed)

"""Devices, what they have, and the precision that suits them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from ftmatrix.errors import UnsupportedError

PROCESS_BYTES = 600 * 2**20
"""What a process takes beside its tensors: the driver's context on a GPU, the libraries' pages on a CPU."""


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


def most_free(cards: Sequence[Card], count: int) -> int:
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
    return replace(accelerator, free_bytes=most_free(accelerator.cards, devices))


def divided(accelerator: Accelerator, processes: int) -> Accelerator:
    """What each of several processes has of a CPU's free memory; a card is one process's alone."""
    if accelerator.device is not Device.cpu or accelerator.free_bytes is None:
        return accelerator
    return replace(accelerator, free_bytes=accelerator.free_bytes // processes)


def imagine(device: Device, memory_bytes: int) -> Accelerator:
    """A card that isn't here, to plan for; `auto` imagines CUDA."""
    device = Device.cuda if device is Device.auto else device
    name = f"a {device.value} device with {memory_bytes / 2**30:g} GiB"
    return Accelerator(device, name, memory_bytes, has_bf16=device is not Device.cpu, free_bytes=memory_bytes)

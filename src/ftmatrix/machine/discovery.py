"""Which devices this machine has, found out without starting a GPU in this process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ftmatrix.errors import UnsupportedError
from ftmatrix.machine import host
from ftmatrix.machine.accelerators import VISIBLE, Accelerator, Card, Device, most_free

KERNELS_BYTES = 128 * 2**20
"""What of `PROCESS_BYTES` is left where the free memory of a GPU is read by a process that has a context itself:
kernels that are loaded as they are needed."""
ANSWER_SECONDS = 120
"""How long a device may take to tell of itself."""


def pick(wanted: Device = Device.auto) -> Accelerator:
    """The wanted device, or the best there is. A GPU is asked by a child process: the caller never touches it.

    Raises:
        UnsupportedError: the wanted device isn't here.
    """
    wanted = resolve(wanted)
    if wanted not in VISIBLE:
        return describe(wanted)
    found = ask_child(wanted)
    alike = [(name, one) for name, one in zip(visible_names(wanted, len(found)), found, strict=True) if one == found[0]]
    cards = tuple(Card(name, one.free_bytes or 0) for name, one in alike)
    return replace(found[0], free_bytes=most_free(cards, 1), cards=cards)


def resolve(wanted: Device) -> Device:
    """The kind of device that is meant: `auto` is the first that is here. Nothing is started.

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
    return wanted


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


def ask_child(device: Device, environment: Mapping[str, str] | None = None) -> list[Accelerator]:
    """The facts of each device of a kind, found out by a process that ends at once, with this added to its environment.

    Raises:
        UnsupportedError: the device can't be started.
    """
    program = (
        "import json, dataclasses; from ftmatrix.machine.discovery import Device, count, describe;"
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

"""Seeds, threads, precision and determinism of a process's tensor arithmetic."""

import os
import random
from typing import TYPE_CHECKING

from ftmatrix.machine.accelerators import Accelerator, Device, Precision

if TYPE_CHECKING:
    import torch


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

"""The processes of one cell that works on several devices: each has a copy of the model, or a shard of it.

They run the same program in step. Copies divide the messages among them; shards compute everything together.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ftmatrix.machine import Accelerator, Device, Rank
from ftmatrix.records import PhasePeak

Item = TypeVar("Item")
Found = TypeVar("Found")
BACKENDS = {Device.cuda: "nccl", Device.xpu: "xccl", Device.cpu: "gloo"}
PATIENCE = timedelta(days=1)
"""How long one process waits for another, which may be writing to a slow disk. That one has died is known otherwise."""


class Group:
    """A cell's processes, seen from one of them. Of a cell that has but one, it does nothing."""

    def __init__(self, rank: Rank | None = None, *, sharded: bool = False) -> None:
        self.rank, self.sharded = rank or Rank(), sharded
        self._accelerate: Any = None

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.rank.size == 1

    @property
    def has_copies(self) -> bool:
        """Whether each process has a whole model."""
        return not self.is_alone and not self.sharded

    def join(self, accelerator: Accelerator) -> None:
        """Meet the other processes, and take the device of this one."""
        if self.is_alone:
            return
        from accelerate import Accelerator as Accelerate
        from accelerate import DistributedDataParallelKwargs

        index, size = self.rank.index, self.rank.size
        os.environ |= {"RANK": f"{index}", "WORLD_SIZE": f"{size}"}
        os.environ |= {f"LOCAL_{name}": os.environ[name] for name in ("RANK", "WORLD_SIZE")}
        if accelerator.device is not Device.cpu:
            getattr(torch, accelerator.kind).set_device(index)
        meeting = f"file://{self.rank.meeting}"  # no port that another sweep could take
        torch.distributed.init_process_group(
            BACKENDS[accelerator.device], init_method=meeting, rank=index, world_size=size, timeout=PATIENCE
        )
        no_copies = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self._accelerate = Accelerate(cpu=accelerator.device is Device.cpu, kwargs_handlers=[no_copies])

    def leave(self) -> None:
        """Part from the others, once all have come here."""
        if not self.is_alone:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def shard(self, model: Any, accelerator: Accelerator) -> None:
        """Where weights are sharded: leave each process its part of every weight, on its device.

        Autocast's copies of weights are no shards: between its forward and its backward pass each device has them all.
        """
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # what accelerate does on GPUs, and on nothing else
        base = base_of(model)
        mesh = init_device_mesh(accelerator.kind, (self.rank.size,))
        for module in (*layers_of(base), base):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)  # so that weights are shards wherever we look
        base._is_fsdp_managed_module = True  # `generate` goes on until all processes are done

    def training(self, model: nn.Module) -> nn.Module:
        """What to call in the model's place, so that backward passes leave the mean gradient of all processes."""
        if not self.has_copies:
            return model
        prepared: nn.Module = self._accelerate.prepare_model(model)
        return prepared

    def synchronised(self, training: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Where a backward pass goes: only the last one of a step hands gradients round."""
        if not self.has_copies or is_last:
            return nullcontext()
        alone: AbstractContextManager[None] = self._accelerate.no_sync(training)
        return alone

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.is_alone:
            return value
        summed: Tensor = self._accelerate.reduce(value, reduction="sum")
        return summed

    def stacked(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every process's tensors, in rows."""
        if self.is_alone:
            return states
        every = self.gather({name: state.cpu() for name, state in states.items()})
        return {name: torch.stack([state[name] for state in every]) for name in states}

    def own(self, stacked: dict[str, Tensor]) -> dict[str, Tensor]:
        """The row of this process in what was `stacked`."""
        return stacked if self.is_alone else {name: rows[self.rank.index].clone() for name, rows in stacked.items()}

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag whether some process has it set."""
        if self.is_alone:
            return list(flags)
        device = self._accelerate.device
        return [count > 0 for count in self.total(torch.tensor(flags, dtype=torch.int32, device=device)).tolist()]

    def gather(self, value: Found) -> list[Found]:
        """Every process's value, in order."""
        if self.is_alone:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def divided(self, work: Callable[[Sequence[Item]], list[Found]], items: Sequence[Item]) -> list[Found]:
        """`work(items)`: copies do a part each, shards do all together and take the first's answer."""
        if self.is_alone:
            return work(items)
        if self.sharded:
            return self.gather(work(items))[0]
        parts = [iter(part) for part in self.gather(work(items[self.rank.index :: self.rank.size]))]
        return [next(parts[index % self.rank.size]) for index in range(len(items))]

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """All weights of a sharded model, put together in the first process alone; None where it has them itself."""
        if not self.sharded:
            return None
        adapted = hasattr(model, "peft_config")
        return {
            name: self.kept(weight.detach())
            for name, weight in model.named_parameters()  # tied ones once
            if weight.requires_grad or not adapted
        }

    def kept(self, tensor: Any) -> Any:
        """A tensor to be written: of a sharded one the whole, in the first process, in the machine's own memory."""
        if not hasattr(tensor, "full_tensor"):
            return tensor
        put_together = whole(tensor)
        return put_together.cpu() if self.rank.is_first else None

    def highest(self, peaks: Sequence[PhasePeak]) -> tuple[PhasePeak, ...]:
        """Of each phase the highest peak of any process."""
        phases = zip(*self.gather(list(peaks)), strict=True)
        return tuple(max(phase, key=lambda peak: peak.peak_bytes or 0) for phase in phases)


def base_of(model: Any) -> Any:
    """The transformer itself, where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_of(base: Any) -> list[nn.Module]:
    """The layers of a transformer, as its own class names them."""
    names = base._no_split_modules or ()
    return [module for module in base.modules() if type(module).__name__ in names]


def whole(tensor: Any) -> Any:
    """A tensor put together from its shards, which all processes have to ask for; anything else as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def sharded_as(weight: Any, tensor: Tensor) -> Tensor:
    """A tensor that belongs to a weight, sharded as that is."""
    if not hasattr(weight, "full_tensor") or tensor.shape != weight.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(weight.device)
    return distribute_tensor(placed, weight.device_mesh, weight.placements, src_data_rank=None)


def gathered(module: Any) -> Any:
    """A copy of a small module with its weights put together; the module itself where they are whole."""
    if not any(hasattr(weight, "full_tensor") for weight in module.parameters()):
        return module
    copy = deepcopy(module)
    for inner in copy.modules():
        for name, weight in inner.named_parameters(recurse=False):
            setattr(inner, name, nn.Parameter(whole(weight.detach()), requires_grad=False))
    return copy

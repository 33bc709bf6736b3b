"""Counts the bytes that tensors hold, as operations make them and Python lets go of them."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_DEVICE = torch.ops.prim.device.default


class StorageTracker(TorchDispatchMode):
    """While active, adds up the storages that are alive, those of `present` tensors too: `live_bytes` now, `peak_bytes`
    at most.

    Works on fake tensors, which have sizes and lifetimes but no memory. What an operation needs within itself isn't
    seen.
    """

    def __init__(self, present: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        for tensor in present:
            self.count(tensor)

    def lap(self) -> int:
        """The peak since the last lap."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def count(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function is _DEVICE:  # two calls of three, and it makes nothing
            return made
        for value in tree_iter(made):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return made

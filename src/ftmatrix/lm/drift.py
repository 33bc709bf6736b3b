"""How far training moved the weights: ‖W - W0‖ / ‖W0‖, read one tensor at a time."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ftmatrix.lm.distributed import gathered, whole
from ftmatrix.records import WeightDrift

ELEMENTS_AT_ONCE = 2**22
"""Float32 copies are made of so many elements at a time, so that the largest tensor costs 16 MiB more, not its size."""

Original = Callable[[str], Tensor | None]
"""Finds a weight as it was before training, by its name in the model; None where it can't be found."""


@dataclass
class _Squares:
    """Sums of squares by kind of matrix: of parts in float32, which every device has, of all parts in Python."""

    change: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    origin: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, kind: str, origin: Tensor, change: Callable[[slice], Tensor] | None = None) -> None:
        rows = max(1, ELEMENTS_AT_ONCE // max(1, origin[0].numel() if origin.ndim else 1))
        for start in range(0, len(origin), rows):
            part = slice(start, start + rows)
            self.origin[kind] += origin[part].float().square().sum().item()
            if change is not None:
                self.change[kind] += change(part).float().square().sum().item()

    def drift(self) -> WeightDrift:
        by_kind = {kind: math.sqrt(self.change[kind] / norm) for kind, norm in sorted(self.origin.items()) if norm > 0}
        return WeightDrift(math.sqrt(sum(self.change.values()) / sum(self.origin.values())), by_kind)


@torch.no_grad()
def trained_drift(model: nn.Module, original: Original) -> WeightDrift:
    """Drift of a model whose own weights were trained.

    Each weight is held against its original as loading rounded it to the weight's own dtype.

    Raises:
        LookupError: an original weight can't be found.
    """
    squares = _Squares()
    for name, weight in model.named_parameters():
        weight = whole(weight)
        before = original(name)
        if before is None or before.shape != weight.shape:
            raise LookupError(f"the checkpoint has no tensor {name} of that shape")
        before = before.to(weight.dtype)

        def change(part: slice, weight: Tensor = weight, before: Tensor = before) -> Tensor:
            return weight[part].float() - before[part].to(weight.device).float()

        squares.add(_kind(name.rpartition(".")[0]), before, change)
    return squares.drift()


@torch.no_grad()
def adapter_drift(model: nn.Module) -> WeightDrift:
    """Drift of the merged weights of a model with LoRA adapters over a frozen base, quantised or not."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    squares = _Squares()
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    inside = tuple(f"{name}." for name, _ in adapted)
    for name, adapted_layer in adapted:
        layer: Any = gathered(adapted_layer)
        whole_parameter = getattr(layer, "parameter_name", "weight") != "weight"  # that of a layer of experts
        before = layer.get_param() if whole_parameter else dequantize_module_weight(layer.get_base_layer())
        delta = _merged_change(layer, before)
        squares.add(_kind(name), before, delta.__getitem__)
    for name, weight in model.named_parameters():
        if not name.startswith(inside):
            squares.add(_kind(name.rpartition(".")[0]), whole(weight))
    return squares.drift()


def _merged_change(layer: Any, before: Tensor) -> Tensor:
    """What merging its adapters would add to a layer's weight, (out, in)."""
    (adapter,) = layer.active_adapters
    if adapter in layer.lora_variant:  # DoRA: the sum, its rows rescaled to trained lengths
        merged: Tensor = layer.lora_variant[adapter].merge_safe(layer, adapter, before.float().clone())
        return merged - before.float()
    delta: Tensor = layer.get_delta_weight(adapter)
    return delta


def _kind(module: str) -> str:
    """The kind of a matrix: its module's own name, such as q_proj or embed_tokens."""
    return module.rpartition(".")[2]

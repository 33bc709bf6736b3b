"""A cell's model: as training finds it, and how far training moved it."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from ftmatrix.errors import UnsupportedError
from ftmatrix.lm import Group, adapter_drift, trained_drift
from ftmatrix.models import StoredTensors, build_model, load_model
from ftmatrix.records import WeightDrift
from ftmatrix.spec import ReadyCell

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_adapted(ready: ReadyCell, group: Group) -> nn.Module:
    """The model that the method trains, on its device; a process's shard of it where weights are split.

    Raises:
        ModelError: the model can't be loaded.
        UnsupportedError: the method trains nothing of it.
    """
    method = ready.cell.method
    device = "cpu" if group.sharded else ready.accelerator.kind  # none has room for all of it
    if ready.cell.model.from_scratch:
        model = _random_model(ready, device)
    else:
        model = load_model(
            ready.checkpoint,
            dtype=method.weights_dtype(ready.precision),
            device=device,
            quantization=method.quantization(ready.precision),
            attention=ready.cell.model.attention,
        )
    adapted = method.adapt(model, ready.precision)
    if not any(weight.requires_grad for weight in adapted.parameters()):
        raise UnsupportedError(f"method={method.name}: trains no weight; its `adapt` sets requires_grad on none")
    group.shard(adapted, ready.accelerator)
    if not group.rank.is_first:  # dropout is each device's own
        torch.manual_seed(ready.cell.seed + (group.rank.index << 32))
    return adapted


def drift_of(model: nn.Module, ready: ReadyCell) -> WeightDrift:
    """How far training moved a cell's weights from where they came from.

    Raises:
        LookupError: the checkpoint's tensors have other names or shapes than the model's.
    """
    if ready.cell.method.trains_adapters:
        return adapter_drift(model)
    if ready.cell.model.from_scratch:
        return trained_drift(model, dict(_random_model(ready, "cpu").named_parameters()).get)
    with StoredTensors(ready.checkpoint.folder) as stored:
        return trained_drift(model, stored.get)


def _random_model(ready: ReadyCell, device: str) -> "PreTrainedModel":
    """New weights in the model's architecture: the same ones whenever this cell asks for them."""
    cell = ready.cell
    torch.manual_seed(cell.seed)
    dtype = cell.method.weights_dtype(ready.precision)
    return build_model(ready.checkpoint, dtype=dtype, device=device, attention=cell.model.attention)

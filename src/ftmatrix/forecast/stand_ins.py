"""What stands for weights that aren't there: fake storages, and layers that a quantised base would have."""

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights of a 4-bit base that share a scale of one byte."""
SECOND_BLOCK = 256
"""Such scales that share a scale of four bytes (double quantisation)."""


def materialise(model: nn.Module) -> None:
    """Give every weight on `meta` a fake storage on the CPU; tied weights stay tied."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                replaced.setdefault(id(weight), nn.Parameter(fake, requires_grad=weight.requires_grad))
                module._parameters[name] = replaced[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


class PackedLinear(nn.Linear):
    """Stands for a bitsandbytes 4-bit layer: half a byte a weight and its scales, unpacked for each product."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute_dtype = layer.in_features, layer.out_features, dtype
        count = layer.weight.numel()
        blocks = -(-count // BLOCK)
        self.weight = nn.Parameter(torch.empty((count + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scales", torch.empty(blocks, dtype=torch.uint8))
        self.register_buffer("second_scales", torch.empty(-(-blocks // SECOND_BLOCK), dtype=torch.float32))
        self.bias = layer.bias

    def forward(self, hidden: Tensor) -> Tensor:
        product: Tensor = _PackedProduct.apply(hidden.to(self.compute_dtype), self)
        return (product if self.bias is None else product + self.bias).to(hidden.dtype)


class _PackedProduct(torch.autograd.Function):
    """A product that keeps no unpacked weight between its forward and its backward pass."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, layer: PackedLinear) -> Tensor:
        context.layer = layer
        unpacked = hidden.new_empty(layer.out_features, layer.in_features)
        return nn.functional.linear(hidden, unpacked)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer = context.layer
        unpacked = gradients[0].new_empty(layer.out_features, layer.in_features)
        return gradients[0] @ unpacked, None


def pack_linear_layers(model: Any, dtype: torch.dtype) -> None:
    """Replace the linear layers that bitsandbytes would quantise: all but the output layer. They compute in `dtype`."""
    output = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not output:
                setattr(parent, name, PackedLinear(child, dtype))

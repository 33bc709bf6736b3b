"""A training step without weights or arithmetic: fake tensors go through the real model, their bytes are counted."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ftmatrix.checkpoints import Checkpoint
from ftmatrix.framing import Batch, label_logits
from ftmatrix.hardware import Precision
from ftmatrix.memory.tracker import StorageTracker
from ftmatrix.methods import Method
from ftmatrix.models import empty_model
from ftmatrix.records import MemoryParts
from ftmatrix.training import make_optimizer, optimizer_tensors, recompute_activations

BLOCK = 64
"""Weights of a 4-bit base that share a scale of one byte."""
SECOND_BLOCK = 256
"""Such scales that share a scale of four bytes (double quantisation)."""


@dataclass(frozen=True)
class BatchShape:
    """What a micro-batch costs: rows, tokens of the longest row, label tokens in all."""

    rows: int
    length: int
    label_tokens: int


@dataclass(frozen=True)
class Shadow:
    """Bytes of one training step: what it holds throughout, and the most it ever holds."""

    parts: MemoryParts
    peak_bytes: int


def shadow_step(
    checkpoint: Checkpoint,
    method: Method,
    *,
    precision: Precision,
    shape: BatchShape,
    accumulates: bool = False,
    gradient_checkpointing: bool = False,
    attention: str = "sdpa",
) -> Shadow:
    """Bytes of the second and every later step of a cell, found out without loading or allocating anything.

    Raises:
        ModelError: the checkpoint's config is no causal LM's.
    """
    model: Any = empty_model(checkpoint, dtype=_dtype(method, precision), attention=attention)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' words about one another's deprecated names
        if method.quantization(precision) is not None:
            pack_linear_layers(model, torch.float32 if precision is Precision.fp32 else torch.bfloat16)
        model = method.adapt(model, precision)
    if precision is Precision.bf16:  # on `meta`, PEFT leaves its adapters as they are made
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if gradient_checkpointing:
        recompute_activations(model)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what it can't do is raised anyway
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(model)
        return _step(model, shape, precision, accumulates=accumulates)


def _step(model: Any, shape: BatchShape, precision: Precision, *, accumulates: bool) -> Shadow:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(trained, lr=1e-3, weight_decay=0.0)
    for parameter in trained:  # what the first step leaves behind: the optimizer's state
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    if not accumulates:
        optimizer.zero_grad(set_to_none=True)
    tracker = StorageTracker()
    for tensor in (*model.parameters(), *model.buffers(), *optimizer_tensors(optimizer)):
        tracker.count(tensor)
    for parameter in trained:
        if parameter.grad is not None:
            tracker.count(parameter.grad)
    with tracker:
        logits, targets = _forward(model, shape, precision)
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        del logits
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        parts = MemoryParts(
            weight_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
            gradient_bytes=sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None),
            optimizer_bytes=sum(tensor.nbytes for tensor in optimizer_tensors(optimizer)),
        )
        optimizer.step()
    return Shadow(parts, tracker.peak_bytes)


def _forward(model: Any, shape: BatchShape, precision: Precision) -> tuple[Tensor, Tensor]:
    model.train()
    rows, length = shape.rows, shape.length
    ids = torch.ones((rows, length), dtype=torch.long)
    positions = torch.ones(shape.label_tokens, dtype=torch.long)
    batch = Batch(ids, torch.ones_like(ids), ids, positions, positions)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.mixed):
        return label_logits(model, batch)


def _dtype(method: Method, precision: Precision) -> Any:
    dtype = method.weights_dtype(precision)
    return torch.float32 if dtype == "auto" else dtype


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

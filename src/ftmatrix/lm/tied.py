"""A tied embedding's gradient in one matrix, where autograd makes three: one for each use, and their sum."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ftmatrix.lm.distributed import local

UNUSUAL = ("max_norm", "scale_grad_by_freq", "sparse")
"""Settings of a lookup that only autograd minds."""


def takes_one_gradient(model: Any) -> bool:
    """Whether the model trains an embedding that is its output layer too, in float32 on a CPU, all of it here.

    Elsewhere autograd's way stays: with autocast the output layer's gradient is a bfloat16 matrix anyway, a GPU's
    kernels haven't been tried, and several devices hand round what autograd gives them.
    """
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    lookup, output = model.get_input_embeddings(), model.get_output_embeddings()
    weight = output.weight
    return (
        weight is lookup.weight
        and getattr(output, "bias", None) is None
        and isinstance(weight, nn.Parameter)
        and weight.requires_grad
        and weight.is_cpu
        and weight.dtype is torch.float32
        and local(weight) is weight
    )


@contextmanager
def one_gradient(model: Any) -> Iterator[None]:
    """Within, forward passes are such that their backward pass adds each use's gradient to `weight.grad` itself."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(_with_own_gradient, module.weight, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _with_own_gradient(weight: nn.Parameter, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    with _OwnGradient(weight):
        return forward(*inputs, **named)


class _OwnGradient(TorchFunctionMode):
    """Takes the place of what uses the weight, wherever a module does so."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is functional.embedding and args[1] is self.weight and not any(map(named.get, UNUSUAL)):
            return _Rows.apply(args[0], self.weight, named.get("padding_idx"))
        if func is functional.linear and args[1] is self.weight:
            return _Scores.apply(args[0], self.weight)
        return func(*args, **named)


class _Rows(torch.autograd.Function):
    """The rows of a (vocabulary, width) matrix at some ids."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: nn.Parameter, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding_idx = weight, padding_idx
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (gradient,), (ids,) = gradients, ctx.saved_tensors
        if ctx.padding_idx is not None:  # learns nothing
            gradient = gradient.masked_fill((ids == ctx.padding_idx).unsqueeze(-1), 0.0)
        if ctx.weight.grad is None:
            ctx.weight.grad = torch.zeros_like(ctx.weight)
        ctx.weight.grad.index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, None, None


class _Scores(torch.autograd.Function):
    """The products of (n, width) with a matrix's rows, (n, vocabulary)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: nn.Parameter) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.weight = weight
        return functional.linear(hidden, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (hidden,) = gradients, ctx.saved_tensors
        if ctx.weight.grad is None:
            ctx.weight.grad = gradient.t() @ hidden
        else:
            ctx.weight.grad.addmm_(gradient.t(), hidden)
        return gradient @ ctx.weight, None

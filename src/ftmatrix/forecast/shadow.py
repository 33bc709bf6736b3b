"""A cell without weights or arithmetic: fake tensors go through the real model, their bytes are counted."""

import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ftmatrix.arms import Method
from ftmatrix.forecast.stand_ins import materialise, pack_linear_layers
from ftmatrix.forecast.tracker import StorageTracker
from ftmatrix.lm import (
    Batch,
    base_of,
    label_logits,
    layers_of,
    make_optimizer,
    optimizer_tensors,
    recompute_activations,
    row_tokens_of,
)
from ftmatrix.machine import Precision
from ftmatrix.models import Checkpoint, empty_model
from ftmatrix.records import Forecast, MemoryParts

FEW_LAYERS = (2, 3)
"""Depths from which a peak is drawn out to the model's own. A model that runs all its layers whatever its config says
has the same peak at both."""


@dataclass(frozen=True)
class BatchShape:
    """What a batch costs: rows, tokens of the longest row, label tokens in all."""

    rows: int
    length: int
    label_tokens: int


@dataclass(frozen=True)
class Work:
    """What decides a cell's tensors beside its model and method: the shapes of its largest batches, and how it trains.

    `scored` are batches that the evaluation scores, `answered` those that it has the model answer, one message a row.
    """

    trained: BatchShape
    answered: BatchShape
    scored: tuple[BatchShape, ...]
    accumulates: bool = False
    shards: int = 1
    one_gradient: bool = False
    """Whether a tied embedding's gradient may be one matrix (see `tied`)."""
    gradient_checkpointing: bool = False
    attention: str = "auto"


def shadow_run(checkpoint: Checkpoint, method: Method, precision: Precision, work: Work) -> Forecast:
    """Peaks of a cell's training, from its second step on, and of its evaluation. Nothing is loaded or allocated.

    Raises:
        ModelError: the checkpoint's config is no causal LM's.
    """
    model: Any = empty_model(checkpoint, dtype=_dtype(method, precision), attention=work.attention)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' words about one another's deprecated names
        if method.quantization(precision) is not None:
            pack_linear_layers(model, torch.float32 if precision is Precision.fp32 else torch.bfloat16)
        model = method.adapt(model, precision)
    if precision is Precision.bf16:  # on `meta`, PEFT leaves its adapters as they are made
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if work.gradient_checkpointing:
        recompute_activations(model)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what it can't do is raised anyway
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = _stepped_once(trained)
        parts = MemoryParts(
            weight_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
            gradient_bytes=sum(parameter.nbytes for parameter in trained),
            optimizer_bytes=sum(tensor.nbytes for tensor in optimizer_tensors(optimizer)),
        )
        model.train()
        steps = _drawn_out(model, partial(_step_peaks, model, optimizer, precision, work))
        optimizer.zero_grad(set_to_none=True)
        del optimizer
        model.eval()
        answer = max(_drawn_out(model, partial(_answer_peaks, model, precision, work)))
        if work.shards > 1:
            return _sharded(model, work, parts, steps, answer)
        return Forecast(max(*steps, parts.total_bytes), parts, answer)


def _sharded(model: Any, work: Work, parts: MemoryParts, steps: Sequence[int], answer: int) -> Forecast:
    """The forecast where each device holds its part, and puts together what it computes with.

    That is all outside the layers and, at most, two layers: the one at work and the one fetched meanwhile; each lies
    in a buffer as well while it is handed round. In the forward pass there are no gradients yet that could be sharded.
    """
    shards = work.shards
    base = base_of(model)
    layers = [list(layer.parameters()) for layer in layers_of(base)]
    inside = {id(weight) for layer in layers for weight in layer}
    outside = [weight for weight in base.parameters() if id(weight) not in inside]
    gathered = sum(weight.nbytes for weight in (*outside, *itertools.chain(*layers[:2])))
    gradients = sum(weight.nbytes for weight in (*outside, *itertools.chain(*layers[:1])) if weight.requires_grad)
    held = MemoryParts(parts.weight_bytes // shards, parts.gradient_bytes // shards, parts.optimizer_bytes // shards)
    saved = parts.total_bytes - held.total_bytes
    saved_forward = saved if work.accumulates else saved - parts.gradient_bytes + held.gradient_bytes
    forward, *backward = steps
    peak = max(forward - saved_forward, *(stretch - saved for stretch in backward)) + 2 * (gathered + gradients)
    return Forecast(peak, held, answer - parts.weight_bytes + held.weight_bytes + 2 * gathered)


def _drawn_out(model: Any, peaks_at_depth: Callable[[], list[int]]) -> list[int]:
    """Several peaks, each of which grows by the same with every layer.

    Where layers are alike, few of them tell of all, which saves most of the time.
    """
    config = model.config.get_text_config()
    layers: int = config.num_hidden_layers
    if not _layers_are_alike(model, layers):
        return peaks_at_depth()
    few, more = FEW_LAYERS
    try:
        config.num_hidden_layers = few
        low = peaks_at_depth()
        config.num_hidden_layers = more
        high = peaks_at_depth()
    except Exception:  # a model that needs the number elsewhere
        config.num_hidden_layers = layers
        return peaks_at_depth()
    finally:
        config.num_hidden_layers = layers
    return [
        at_few + (at_more - at_few) * (layers - few) // (more - few) for at_few, at_more in zip(low, high, strict=True)
    ]


def _layers_are_alike(model: Any, layers: int) -> bool:
    """Whether the model is a stack of layers of the same shapes, and deep enough for it to matter."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    shapes = {tuple(parameter.shape for parameter in layer.parameters()) for stack in stacks for layer in stack}
    return len(stacks) == len(shapes) == 1 and layers > max(FEW_LAYERS)


def _stepped_once(trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer with the state that its first step leaves."""
    optimizer = make_optimizer(trained, lr=1e-3, weight_decay=0.0)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def _step_peaks(model: Any, optimizer: torch.optim.Optimizer, precision: Precision, work: Work) -> list[int]:
    """Peaks of a step's stretches: up to the layers' backward pass, in it, and in that of the embeddings."""
    if not work.accumulates:
        optimizer.zero_grad(set_to_none=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    tracker = StorageTracker([*model.parameters(), *model.buffers(), *optimizer_tensors(optimizer), *gradients])
    del gradients
    peaks: list[int] = []

    def stretch_ends(_: Tensor) -> None:
        peaks.append(tracker.lap())

    def watch(tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.register_hook(stretch_ends)

    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda _, __, embedded: watch(embedded)),
        model.get_output_embeddings().register_forward_pre_hook(lambda _, arguments: watch(arguments[0])),
    ]
    try:
        with tracker:
            logits, targets = _forward(model, work.trained, precision, alone=work.one_gradient)
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            del logits
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return [*peaks, tracker.lap()]


@torch.no_grad()
def _answer_peaks(model: Any, precision: Precision, work: Work) -> list[int]:
    """Peaks of scoring under the gold prefix, and of greedy decoding within the label set."""
    tracker = StorageTracker([*model.parameters(), *model.buffers()])
    with tracker:
        _score(model, work, precision)
        scoring = tracker.lap()
        _decode(model, work.answered, precision)
    return [scoring, tracker.lap()]


def _score(model: Any, work: Work, precision: Precision) -> None:
    for shape in work.scored:
        logits, targets = _forward(model, shape, precision)
        nn.functional.cross_entropy(logits, targets, reduction="none")
        del logits


def _decode(model: Any, shape: BatchShape, precision: Precision) -> Tensor | None:
    """Scores of the second token written, as `generate` does it: the cache grows, only the last position is scored."""
    cache, scores, length = None, None, shape.length
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, arguments: (arguments[0][:, -1:],))
    try:
        for read in (length, 1):
            ids = torch.ones((shape.rows, read), dtype=torch.long)
            mask = torch.ones((shape.rows, length), dtype=torch.long)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.mixed):
                written = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            logits = written.logits[:, -1].to(torch.float32, copy=True)
            scores = torch.full_like(logits, -torch.inf)  # within the label set; the token before's stay until now
            cache, length = written.past_key_values, length + 1
    finally:
        hook.remove()
    return scores


def _forward(model: Any, shape: BatchShape, precision: Precision, *, alone: bool = True) -> tuple[Tensor, Tensor]:
    rows, length = shape.rows, shape.length
    ids = torch.ones((rows, length), dtype=torch.long)
    positions = torch.ones(shape.label_tokens, dtype=torch.long)
    layout = "position_ids" if row_tokens_of(model) else "attention_mask"
    batch = Batch({"input_ids": ids, layout: torch.ones_like(ids)}, positions, positions)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.mixed):
        return label_logits(model, batch, alone=alone)


def _dtype(method: Method, precision: Precision) -> Any:
    dtype = method.weights_dtype(precision)
    return torch.float32 if dtype == "auto" else dtype

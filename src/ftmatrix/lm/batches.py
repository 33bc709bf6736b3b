"""Batches without padding: several examples in a row, kept apart by their positions; and their labels' logits alone."""

import heapq
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ftmatrix.lm.distributed import base_of
from ftmatrix.lm.framing import Example
from ftmatrix.lm.tied import one_gradient, takes_one_gradient

ROW_TOKENS = 128
"""How long a row of several examples gets, more or less. Longer rows leave less room empty, but the cost of attention
grows with them."""
PACKABLE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that keep apart what their mask keeps apart."""
APART, APART_ROUGHLY = 1e-4, 0.1
"""How much of what neighbours in a row would do to an example, were they not kept apart, may be left: rounding, in
float32 and in coarser arithmetic."""


@dataclass(frozen=True)
class Batch:
    """Examples in rows. `inputs` is what the model takes, each (rows, width): `input_ids`, and how they lie there.

    Either several lie in a row, and `position_ids` begins anew with each; or one lies in each row, padded at its right,
    and `attention_mask` is 1 on it.

    `positions` (n,) are the places, in the flattened batch, whose hidden states predict the label tokens `targets`, in
    the order of the examples: known from the lengths, so that no device has to be asked which they are.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    targets: Tensor

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.positions.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Collator:
    """Makes batches of examples. Without `row_tokens`, each has a row of its own."""

    pad_id: int
    row_tokens: int | None = ROW_TOKENS

    @classmethod
    def suiting(cls, model: Any, pad_id: int) -> "Collator":
        """One that packs, where the model keeps the examples of a row apart, which is tried on a few tokens.

        Call it in the arithmetic that the model is to run in.
        """
        row_tokens = row_tokens_of(model)
        return cls(pad_id, row_tokens if row_tokens and _keeps_apart(model) else None)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        lengths = [len(example) for example in examples]
        rows = rows_of(lengths, self.row_tokens)
        width = width_of(lengths, rows)
        ids, places = list[list[int]](), list[list[int]]()
        label_starts = [0] * len(examples)
        for number, row in enumerate(rows):
            written, counted = list[int](), list[int]()
            for index in row:
                label_starts[index] = number * width + len(written) + len(examples[index].prompt)
                written += examples[index].prompt + examples[index].label
                counted += range(len(examples[index]))
            room = width - len(written)
            ids.append(written + [self.pad_id] * room)
            places.append(counted + (list(range(room)) if self.row_tokens else [-1] * room))
        positions = [
            place - 1
            for start, example in zip(label_starts, examples, strict=True)
            for place in range(start, start + len(example.label))
        ]
        placed = torch.tensor(places)
        layout = {"position_ids": placed} if self.row_tokens else {"attention_mask": (placed >= 0).long()}
        return Batch(
            inputs={"input_ids": torch.tensor(ids), **layout},
            positions=torch.tensor(positions),
            targets=torch.tensor([token for example in examples for token in example.label]),
        )

    def largest(self, batches: Sequence[Sequence[Example]]) -> list[Sequence[Example]]:
        """Those that take the most memory: with the most places, the most label tokens, and the most of both."""
        places, labels = list[float](), list[float]()
        for examples in batches:
            lengths = [len(example) for example in examples]
            rows = rows_of(lengths, self.row_tokens)
            places.append(len(rows) * width_of(lengths, rows))
            labels.append(sum(len(example.label) for example in examples))
        both = [place / max(places) + label / max(labels) for place, label in zip(places, labels, strict=True)]
        indices = {sizes.index(max(sizes)) for sizes in (places, labels, both)}
        return [batches[index] for index in sorted(indices)]


def rows_of(lengths: Sequence[int], row_tokens: int | None) -> list[list[int]]:
    """Which examples lie in which row, by index: of several numbers of rows, that which leaves the least room empty.

    One example a row is among them, so that nothing is ever larger than without packing.
    """
    one_a_row = [[index] for index in range(len(lengths))]
    if row_tokens is None:
        return one_a_row
    fewest = -(-sum(lengths) // max(row_tokens, *lengths))
    ways = [_evenly(lengths, count) for count in range(fewest, min(2 * fewest + 1, len(lengths)))]
    return min([*ways, one_a_row], key=lambda rows: len(rows) * width_of(lengths, rows))


def width_of(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """Tokens of the fullest row."""
    return max(sum(lengths[index] for index in row) for row in rows)


def _evenly(lengths: Sequence[int], count: int) -> list[list[int]]:
    """So many rows, filled evenly: the longest example first, each into the row that has the most room."""
    filled: list[tuple[int, int]] = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        tokens, row = filled[0]
        rows[row].append(index)
        heapq.heapreplace(filled, (tokens + lengths[index], row))
    return rows


def row_tokens_of(model: Any) -> int | None:
    """How long rows of several examples may get: as they come where attention itself knows the lengths of a row's
    examples, `ROW_TOKENS` where it computes a whole row and masks it; None where the model takes no positions, or has
    layers that aren't attention.
    """
    base = base_of(model)
    layers = getattr(base.config.get_text_config(), "layer_types", None) or ()
    if "position_ids" not in signature(base.forward).parameters or not PACKABLE_LAYERS.issuperset(layers):
        return None
    if getattr(base, "_is_stateful", False):
        return None
    return sys.maxsize if str(base.config._attn_implementation).startswith("flash") else ROW_TOKENS


@torch.no_grad()
def _keeps_apart(model: Any) -> bool:
    """Whether examples that share a row come to the logits that each has alone.

    Not so where a model ignores positions, or mixes neighbours by other means than attention (convolutions, state
    spaces). The measure is what the same row comes to as one text.
    """
    examples = [Example((1, 2, 3), (4,)), Example((5,), (6, 7))]
    was_training, device = model.training, model.device.type
    is_exact = model.dtype is torch.float32 and not torch.is_autocast_enabled(device)
    packed = Collator(0)(examples).to(device)
    as_one = replace(packed, inputs={"input_ids": packed.inputs["input_ids"]})
    model.eval()
    alone = torch.cat([label_logits(model, Collator(0, None)([example]).to(device))[0] for example in examples])
    together, mixed = (label_logits(model, batch)[0] for batch in (packed, as_one))
    model.train(was_training)
    left = APART if is_exact else APART_ROUGHLY
    return bool((together - alone).norm() <= left * (mixed - alone).norm())


def label_logits(
    model: Any, batch: Batch, forward: Callable[..., Any] | None = None, *, alone: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits and targets of the label positions alone: (n, vocabulary) in float32 and (n,).

    `forward` is what to call instead of the model, where something wraps it. `alone`: no other process waits for the
    gradients, so that they may be left in one matrix (see `tied`).

    The hidden states of all other positions are dropped before the output layer, so that its cost follows the few
    label tokens and not the whole batch; whatever the model does to its logits afterwards (soft-capping, scaling)
    still happens.
    """

    def keep_wanted(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0].flatten(0, 1).index_select(0, batch.positions),)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_wanted)
    try:
        with one_gradient(model) if alone and takes_one_gradient(model) else nullcontext():
            logits = (forward or model)(**batch.inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits.float(), batch.targets

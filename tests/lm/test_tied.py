"""An embedding that is the output layer too: its gradient is autograd's, in one matrix."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ftmatrix.data import Message
from ftmatrix.forecast.tracker import StorageTracker
from ftmatrix.lm import Batch, Collator, Framer, label_logits, recompute_activations
from ftmatrix.lm.tied import one_gradient, takes_one_gradient


@pytest.fixture
def tied(model_folders: dict[str, Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)


def gradient(model: Any, batch: Batch, *, alone: bool) -> tuple[Tensor, int]:
    """The embedding's gradient after two backward passes, and the bytes that both held at most."""
    weight = model.get_input_embeddings().weight
    model.zero_grad()
    tracker = StorageTracker([weight])
    for _ in range(2):
        with tracker:
            logits, targets = label_logits(model, batch, alone=alone)
            functional.cross_entropy(logits, targets, reduction="sum").backward()
    return weight.grad.clone(), tracker.peak_bytes


@pytest.mark.parametrize("row_tokens", [None, 128], ids=["padded", "packed"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "checkpointing"])
def test_a_tied_embeddings_gradient_is_autograds_in_one_matrix(
    row_tokens: int | None, recomputed: bool, tied: Any, framer: Framer, messages: tuple[Message, ...]
) -> None:
    if recomputed:
        tied.train()
        recompute_activations(tied)
    batch = Collator(framer.pad_id, row_tokens)(framer.frame(messages[:2]))
    assert takes_one_gradient(tied)
    expected, most = gradient(tied, batch, alone=False)
    found, less = gradient(tied, batch, alone=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert most - less > 1.5 * expected.nbytes
    assert "forward" not in {*vars(tied.get_input_embeddings()), *vars(tied.get_output_embeddings())}


class Tied(nn.Module):
    """A lookup and an output layer, and nothing between them that could hide a token's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = nn.Embedding(50, 8, padding_idx=3)
        self.output = nn.Linear(8, 50, bias=False)
        self.output.weight = self.lookup.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.lookup

    def get_output_embeddings(self) -> nn.Module:
        return self.output

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.output(self.lookup(ids).tanh())
        return scores


def test_the_padding_tokens_row_learns_nothing_from_its_lookup() -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.tensor([3, 7, 7, 49, 3])
    targets = ids.flip(0)
    functional.cross_entropy(model(ids), targets).backward()
    expected = model.lookup.weight.grad
    assert expected is not None
    model.zero_grad()
    with one_gradient(model):
        functional.cross_entropy(model(ids), targets).backward()
    torch.testing.assert_close(model.lookup.weight.grad, expected)


def test_other_embeddings_are_left_to_autograd(tied: Any, model_folders: dict[str, Path]) -> None:
    untied = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    assert not takes_one_gradient(untied)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_one_gradient(tied)
    with torch.no_grad():
        assert not takes_one_gradient(tied)
    assert not takes_one_gradient(tied.requires_grad_(False))
    assert not takes_one_gradient(tied.requires_grad_(True).bfloat16())

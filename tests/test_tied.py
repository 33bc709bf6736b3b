"""An embedding that is the output layer too: its gradient is autograd's, in one matrix."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ftmatrix.batches import Batch, Collator, label_logits
from ftmatrix.data import Message
from ftmatrix.framing import Framer
from ftmatrix.memory.tracker import StorageTracker
from ftmatrix.tied import takes_one_gradient


def gradient(model: Any, batch: Batch, *, one: bool) -> tuple[Tensor, int]:
    """The embedding's gradient after two backward passes, and the bytes that the second held at most."""
    weight = model.get_input_embeddings().weight
    model.zero_grad()
    forward = None if one else model.forward  # as where something wraps the model
    for _ in range(2):
        tracker = StorageTracker([weight])
        with tracker:
            logits, targets = label_logits(model, batch, forward)
            functional.cross_entropy(logits, targets, reduction="sum").backward()
    return weight.grad.clone(), tracker.peak_bytes


def test_a_tied_embeddings_gradient_is_autograds_in_one_matrix(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)
    padded = Collator(framer.pad_id, None)(framer.frame(messages[:2]))
    assert takes_one_gradient(model)
    expected, most = gradient(model, padded, one=False)
    found, less = gradient(model, padded, one=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert most - less > 1.5 * expected.nbytes
    assert not {"forward"} & {*vars(model.get_input_embeddings()), *vars(model.get_output_embeddings())}


def test_other_embeddings_are_left_to_autograd(model_folders: dict[str, Path]) -> None:
    untied = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    assert not takes_one_gradient(untied)
    tied = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_one_gradient(tied)
    assert not takes_one_gradient(tied.bfloat16())

"""Batches: the label-only loss, and rows that hold several messages without mixing them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from ftmatrix.data import Message
from ftmatrix.lm import Batch, Collator, Framer, label_logits, row_tokens_of, rows_of, width_of
from ftmatrix.lm.batches import ROW_TOKENS

IGNORED = -100
given_lengths = pytest.mark.parametrize(
    "lengths",
    [
        *([length] * 16 for length in (1, 40, 50, 90, 100, 120, 128, 300)),
        [70, 75, 80, 90],
        list(range(60, 124)),
        list(range(15, 45)) * 2,
        [128, *[25] * 15],
    ],
    ids=lambda lengths: f"{len(lengths)} of {lengths[0]} to {lengths[-1]}",
)
ARCHITECTURES = pytest.mark.parametrize("architecture", ["gemma", "llama"])


def masked_labels(batch: Batch) -> torch.Tensor:
    """What transformers' own loss is given."""
    labels = torch.full_like(batch.inputs["input_ids"], IGNORED)
    labels.view(-1)[batch.positions + 1] = batch.targets
    return labels


def own_loss(model: Any, batch: Batch) -> torch.Tensor:
    loss: torch.Tensor = model(**batch.inputs, labels=masked_labels(batch)).loss
    return loss


@ARCHITECTURES
@pytest.mark.parametrize("row_tokens", [None, ROW_TOKENS, 10_000])
def test_loss_equals_the_models_own_masked_loss(
    architecture: str,
    row_tokens: int | None,
    model_folders: dict[str, Path],
    framer: Framer,
    messages: tuple[Message, ...],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folders[architecture], dtype=torch.float32).eval()
    examples = framer.frame(messages[:24])
    own = own_loss(model, Collator(framer.pad_id, None)(examples))
    logits, targets = label_logits(model, Collator(framer.pad_id, row_tokens)(examples))
    assert logits.shape == (len(targets), model.config.vocab_size)
    assert functional.cross_entropy(logits, targets).item() == pytest.approx(own.item(), abs=1e-5)


@ARCHITECTURES
def test_gradients_equal_those_of_the_models_own_loss(
    architecture: str, model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...]
) -> None:
    examples = framer.frame(messages[:24])
    gradients = []
    for use_own in (True, False):
        model = AutoModelForCausalLM.from_pretrained(model_folders[architecture], dtype=torch.float32).train()
        if use_own:
            loss = own_loss(model, Collator(framer.pad_id, None)(examples))
        else:
            loss = functional.cross_entropy(*label_logits(model, Collator(framer.pad_id)(examples)))
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for own, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(own, ours, atol=1e-6, rtol=1e-4)


def test_a_window_of_attention_slides_within_a_message(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...]
) -> None:
    """Gemma's local layers see 16 tokens back here: fewer than a message has, and never a neighbour's."""
    model = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32).eval()
    examples = [example for example in framer.frame(messages) if len(example) > 20]
    assert model.config.sliding_window == 16
    alone = torch.cat([label_logits(model, Collator(framer.pad_id, None)([example]))[0] for example in examples])
    together, _ = label_logits(model, Collator(framer.pad_id)(examples))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_only_labels_are_predicted(framer: Framer, messages: tuple[Message, ...]) -> None:
    examples = framer.frame(messages[:24])
    batch = Collator(framer.pad_id)(examples)
    assert batch.targets.tolist() == [token for example in examples for token in example.label]
    assert batch.inputs["input_ids"].view(-1)[batch.positions + 1].equal(batch.targets)
    last_of_prompts = [example.prompt[-1] for example in examples]
    starts = torch.tensor([len(example.label) for example in examples]).cumsum(0).roll(1)
    starts[0] = 0
    assert batch.inputs["input_ids"].view(-1)[batch.positions[starts]].tolist() == last_of_prompts


@given_lengths
def test_packing_never_makes_a_batch_larger(lengths: list[int]) -> None:
    rows = rows_of(lengths, ROW_TOKENS)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    places = len(rows) * width_of(lengths, rows)
    assert sum(lengths) <= places <= len(lengths) * max(lengths)


def test_rows_are_few_and_even() -> None:
    lengths = [40, 10, 10, 60, 30, 50, 20, 20]
    rows = rows_of(lengths, 128)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert sorted(sum(lengths[index] for index in row) for row in rows) == [120, 120]
    assert rows_of(lengths, None) == [[index] for index in range(len(lengths))]
    assert rows_of([300, 20, 20], 128) == [[0], [1, 2]]
    assert rows_of([7], 128) == [[0]]


TINY: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
STRANGERS = {
    "positions are ignored": lambda: BloomForCausalLM(BloomConfig(**TINY, n_head=2, n_layer=2)),
    "a state space": lambda: MambaForCausalLM(MambaConfig(**TINY)),
    "convolutions beside attention": lambda: Lfm2ForCausalLM(
        Lfm2Config(
            **TINY,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            layer_types=["conv", "full_attention"],
        )
    ),
}


@pytest.mark.parametrize("make", STRANGERS.values(), ids=STRANGERS)
def test_a_model_that_would_mix_messages_gets_one_a_row(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    assert Collator.suiting(model, 0) == Collator(0, None)
    assert row_tokens_of(model) is None  # what a forecast goes by


@ARCHITECTURES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_keeps_them_apart_gets_several_a_row(
    architecture: str, dtype: torch.dtype, model_folders: dict[str, Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folders[architecture], dtype=dtype).train()
    assert Collator.suiting(model, 3) == Collator(3, ROW_TOKENS)
    assert model.training

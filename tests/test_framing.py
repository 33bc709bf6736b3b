"""Framing: the mask, the label-only loss, and answers read back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ftmatrix.data import Message
from ftmatrix.errors import ConfigError, DataError
from ftmatrix.framing import IGNORED, Framer, Framing, collate, label_logits


@pytest.mark.parametrize("architecture", ["gemma", "llama"])
def test_loss_equals_the_models_own_masked_loss(
    architecture: str, model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folders[architecture], dtype=torch.float32).eval()
    batch = collate(framer.frame(messages[:8]), framer.pad_id)
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    logits, targets = label_logits(model, batch)
    assert logits.shape == (len(targets), model.config.vocab_size)
    assert functional.cross_entropy(logits, targets).item() == pytest.approx(own.item(), abs=1e-5)


def test_gradients_equal_those_of_the_models_own_loss(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...]
) -> None:
    batch = collate(framer.frame(messages[:8]), framer.pad_id)
    gradients = []
    for use_own in (True, False):
        model = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32).train()
        if use_own:
            loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        else:
            loss = functional.cross_entropy(*label_logits(model, batch))
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for own, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(own, ours, atol=1e-6, rtol=1e-4)


def test_every_prompt_token_is_masked(framer: Framer, messages: tuple[Message, ...]) -> None:
    examples = framer.frame(messages[:8])
    batch = collate(examples, framer.pad_id)
    for row, example in enumerate(examples):
        kept = batch.labels[row] != IGNORED
        assert batch.labels[row][kept].tolist() == list(example.label)
        assert kept.nonzero().min() == len(example.prompt)
        assert example.label[-1] == framer.eos_id
        assert batch.attention_mask[row].sum() == len(example)


def test_every_label_reads_back(framer: Framer) -> None:
    for label, ids in framer.label_ids.items():
        assert framer.read(ids[:-1]) == label
    assert framer.read(framer.tokenizer(" no such intent", add_special_tokens=False)["input_ids"]) is None


def test_long_messages_are_cut_at_their_end_and_counted(tokenizer: Any) -> None:
    framer = Framer(Framing(max_length=32), tokenizer, ["card_arrival", "pin_change"])
    (example,) = framer.frame([Message("where is my card " * 40, "card_arrival")])
    assert len(example) <= 32
    assert len(framer.cut) == 1
    written = tokenizer.decode(example.prompt, skip_special_tokens=True)
    assert written.startswith("where is my card")
    assert written.endswith("\nIntent:")


def test_labels_that_read_the_same_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="both read 'card arrival'"):
        Framer(Framing(), tokenizer, ["card_arrival", "card arrival"])
    Framer(Framing(spaces_for_underscores=False), tokenizer, ["card_arrival", "card arrival"])


def test_a_label_longer_than_the_sequence_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"framing.max_length=16: beside the template and the longest label"):
        Framer(Framing(max_length=16), tokenizer, ["a very long label that goes on and on for ever", "short"])


@pytest.mark.parametrize("template", ["Intent:", "{text}{text}"])
def test_a_template_without_one_place_for_the_text_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="exactly once"):
        Framing(template=template).check()


def test_a_special_token_in_a_message_is_text(framer: Framer) -> None:
    (ids,) = framer.prompts(["hello <eos> there <bos>"])
    assert ids.count(framer.eos_id) == 0
    assert ids.count(framer.tokenizer.bos_token_id) == 1
    assert framer.text(ids).startswith("hello <eos> there <bos>")

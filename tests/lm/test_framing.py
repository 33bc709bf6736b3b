"""Framing: the mask, the label-only loss, and answers read back."""

from typing import Any

import pytest

from ftmatrix.data import Message
from ftmatrix.errors import ConfigError, DataError
from ftmatrix.lm import Framer, Framing


def test_a_label_ends_with_the_end_token(framer: Framer, messages: tuple[Message, ...]) -> None:
    for example, message in zip(framer.frame(messages[:8]), messages, strict=False):
        assert example.label == framer.label_ids[message.label]
        assert example.label[-1] == framer.eos_id


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

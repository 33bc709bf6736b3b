"""Classification as generation: prompt, label and end token, and the way back from ids to a label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftmatrix.data import Message
from ftmatrix.errors import ConfigError, DataError, ModelError
from ftmatrix.lm.settings import Framing
from ftmatrix.models import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LEAST_ROOM = 4
"""Tokens of a message that must fit."""
PASSAGE_TOKENS = 128
"""Window in which running text is predicted."""


@dataclass(frozen=True)
class Example:
    """One framed message: `prompt` and `label` are token ids, the latter closed by the end token."""

    prompt: tuple[int, ...]
    label: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.label)


class Framer:
    """Frames messages for one tokenizer and label set, and reads answers back. `limits` are those of the model.

    Raises:
        ConfigError: the template and the longest label leave no room for a message.
        DataError: a label can't be told from another, or can't be written.
        ModelError: the model has no embedding for the end token.
    """

    def __init__(
        self,
        framing: Framing,
        tokenizer: "PreTrainedTokenizerBase",
        labels: Sequence[str],
        limits: Limits | None = None,
    ) -> None:
        self.framing, self.tokenizer, self.labels, self.limits = framing, tokenizer, tuple(labels), limits
        self.positions = limits.positions if limits else None
        self.max_length = min(framing.max_length, self.positions or framing.max_length)
        """Longest sequence in tokens, label included: what is asked for, or what the model has positions for."""
        self.eos_id = _end_token(framing, tokenizer)
        if limits and self.eos_id >= limits.vocabulary:
            raise ModelError(
                f"{tokenizer.name_or_path}: the end token is {self.eos_id}, but the model's vocabulary ends at "
                f"{limits.vocabulary - 1}; save the model with resize_token_embeddings, or take the tokenizer it was "
                "trained with"
            )
        self.pad_id: int = self._known(tokenizer.pad_token_id, self.eos_id)
        self.cut: set[str] = set()
        """Messages that didn't fit and lost their end."""
        self._label_of_text: dict[str, str] = {}
        for label in labels:
            text = framing.label_text(label).strip()
            if not text:
                raise DataError(f"label {label!r}: nothing of it is left as text, so that any answer is it; rename it")
            if text in self._label_of_text:
                other = self._label_of_text[text]
                raise DataError(
                    f"labels {other!r} and {label!r} both read {text!r}; set framing.spaces_for_underscores=false"
                )
            self._label_of_text[text] = label
        self.label_ids = {label: self._encode_label(label) for label in labels}
        before, after = framing.template.split("{text}")
        begin = tokenizer("")["input_ids"]  # the begin token, if any
        ends = (self.eos_id, tokenizer.eos_token_id)
        self._begin = [token for token in begin if token not in ends and self._known(token, self.eos_id) == token]
        self._before = [*self._begin, *tokenizer(before, add_special_tokens=False)["input_ids"]]
        self._after = tokenizer(after, add_special_tokens=False)["input_ids"]
        self._room = self.max_length - self.longest_label - len(self._before) - len(self._after)
        if self._room < LEAST_ROOM:
            if self.max_length < framing.max_length:
                raise ModelError(
                    f"{tokenizer.name_or_path}: of the model's {self.max_length} positions the template and the "
                    f"longest label leave {self._room} for the message, which needs {LEAST_ROOM}; shorten them, or "
                    "take another model"
                )
            raise ConfigError(
                f"framing.max_length={framing.max_length}: beside the template and the longest label, {self._room} "
                f"tokens are left for the message; take at least {framing.max_length - self._room + LEAST_ROOM}"
            )

    @property
    def longest_label(self) -> int:
        """Tokens of the longest label, the end token included."""
        return max(len(ids) for ids in self.label_ids.values())

    def frame(self, messages: Sequence[Message]) -> list[Example]:
        """One example a message, in order."""
        prompts = self.prompts([message.text for message in messages])
        return [
            Example(tuple(prompt), self.label_ids[message.label])
            for prompt, message in zip(prompts, messages, strict=True)
        ]

    def passages(self, text: str) -> list[Example]:
        """Running text in windows of `PASSAGE_TOKENS`, each to be predicted from its first token on."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        begin = tuple(self._begin)
        width = min(PASSAGE_TOKENS, (self.positions or PASSAGE_TOKENS + len(begin)) - len(begin))
        windows = [tuple(ids[start : start + width]) for start in range(0, len(ids) - 1, width)]
        return [Example((*begin, window[0]), window[1:]) for window in windows if len(window) > 1]

    def check(self, examples: Iterable[Example], where: str) -> None:
        """Refuse tokens that the model has no embedding for.

        Raises:
            ModelError: the tokenizer is another model's.
        """
        highest = max(max(*example.prompt, *example.label) for example in examples)
        if self.limits and highest >= self.limits.vocabulary:
            raise ModelError(
                f"{where}: its tokenizer uses token {highest}, but its vocabulary ends at "
                f"{self.limits.vocabulary - 1}; take the tokenizer that belongs to the model"
            )

    def _known(self, token: int | None, otherwise: int) -> int:
        """A special token, if the tokenizer has it and the model an embedding for it."""
        return otherwise if token is None or (self.limits and token >= self.limits.vocabulary) else token

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The prompt's token ids of each text, cut so that every label still fits.

        A special token that stands in a message is text like any other.
        """
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        self.cut |= {text for text, ids in zip(texts, encoded, strict=True) if len(ids) > self._room}
        return [[*self._before, *ids[: self._room], *self._after] for ids in encoded]

    def read(self, ids: Iterable[int]) -> str | None:
        """The label that generated ids spell, or None where they spell none. Ids end before the end token."""
        return self._label_of_text.get(self.text(ids))

    def begin_of(self, ids: Sequence[int]) -> str | None:
        """The label, the longest one, that generated ids begin with; None where there is none."""
        begun = [label for label, own in self.label_ids.items() if tuple(ids[: len(own) - 1]) == own[:-1]]
        return max(begun, key=lambda label: len(self.label_ids[label]), default=None)

    def text(self, ids: Iterable[int]) -> str:
        """Generated ids as text."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _encode_label(self, label: str) -> tuple[int, ...]:
        ids = self.tokenizer(" " + self.framing.label_text(label).strip(), add_special_tokens=False)["input_ids"]
        if self.text(ids) != self.framing.label_text(label).strip():
            raise DataError(
                f"label {label!r}: this tokenizer can't write it (it reads back as {self.text(ids)!r}); rename it"
            )
        return (*ids, self.eos_id)


def _end_token(framing: Framing, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends an answer.

    Raises:
        ConfigError: `framing.end` isn't one token.
    """
    if framing.end is None:
        return int(tokenizer.eos_token_id)
    ids = tokenizer(framing.end.replace("\\n", "\n"), add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"framing.end={framing.end!r}: must be one token; this model's tokenizer makes {len(ids)} of it"
        )
    return int(ids[0])

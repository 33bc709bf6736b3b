"""A data set as it is used: three splits of labelled messages, checked."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ftmatrix.errors import DataError

INVALID = "(invalid)"
"""What tables call an answer outside the label set. No intent may have this name."""


@dataclass(frozen=True, slots=True)
class Message:
    """One labelled message."""

    text: str
    label: str


Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Dataset:
    """Checked splits. `labels` are sorted; `notes` say what a reader should know (duplicates, contradictions)."""

    source: str
    train: Messages
    validation: Messages
    test: Messages
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({message.label for message in self.train}))

    @property
    def digest(self) -> str:
        """A digest of every text and label, in order."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for message in split:
                digest.update(f"{len(message.text)}:{message.text}{len(message.label)}:{message.label}".encode())
            digest.update(b"|")
        return digest.hexdigest()[:40]

    def common_intents(self, count: int) -> frozenset[str]:
        """The `count` intents with the most training messages; ties by name."""
        sizes = Counter(message.label for message in self.train)
        return frozenset(sorted(sizes, key=lambda label: (-sizes[label], label))[:count])


def folded(text: str) -> str:
    """A text with case, punctuation and runs of white space folded, for finding duplicates."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def stratified_subset(messages: Sequence[Message], size: int, *, seed: int) -> Messages:
    """A seeded subset that keeps the intents' proportions (largest remainder), in the original order.

    Every intent keeps at least one message where `size` allows one each.
    """
    if size >= len(messages):
        return tuple(messages)
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, message in enumerate(messages):
        by_label[message.label].append(index)
    chosen: list[int] = []
    for label, count in _shares({label: len(rows) for label, rows in by_label.items()}, size).items():
        chosen += random.Random(f"{seed}:{label}").sample(by_label[label], count)
    return tuple(messages[index] for index in sorted(chosen))


def _shares(sizes: dict[str, int], total: int) -> dict[str, int]:
    whole = sum(sizes.values())
    least = 1 if total >= len(sizes) else 0
    exact = {label: total * size / whole for label, size in sizes.items()}
    shares = {label: max(least, int(exact[label])) for label in sizes}
    while sum(shares.values()) < total:
        label = max(sizes, key=lambda name: ((exact[name] - shares[name]), sizes[name], name))
        shares[label] += 1
    while sum(shares.values()) > total:
        label = max(
            (name for name in sizes if shares[name] > least), key=lambda name: (shares[name] - exact[name], name)
        )
        shares[label] -= 1
    return shares


def cut_validation(train: Sequence[Message], fraction: float, *, seed: int) -> tuple[Messages, Messages]:
    """Cut a stratified validation split from train; an intent with one message keeps it in train."""
    sizes = Counter(message.label for message in train)
    divisible = [message for message in train if sizes[message.label] > 1]
    size = min(max(1, round(fraction * len(train))), len(divisible) // 2)
    held = {id(message) for message in stratified_subset(divisible, size, seed=seed)}
    rest = tuple(message for message in train if id(message) not in held)
    validation = tuple(message for message in train if id(message) in held)
    return rest, validation


def check_messages(messages: Iterable[Message], where: str) -> None:
    """Refuse empty texts and labels.

    Raises:
        DataError: names the split and the row, counted from 1.
    """
    for row, message in enumerate(messages, 1):
        if not message.text.strip():
            raise DataError(f"{where}, message {row}: the text is empty; remove it or fill it in")
        if not message.label.strip():
            raise DataError(f"{where}, message {row}: the label is empty; remove it or fill it in")
        if message.label == INVALID:
            raise DataError(f"{where}, message {row}: the label {INVALID!r} is reserved for wrong answers; rename it")


def check_splits(dataset: Dataset) -> None:
    """Refuse sets that no classifier can be compared on.

    Raises:
        DataError: no messages, fewer than two intents, or a label that train doesn't hold.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for split, messages in splits.items():
        if not messages:
            raise DataError(f"{dataset.source}: the {split} split is empty")
    labels = dataset.labels
    if len(labels) < 2:
        raise DataError(f"{dataset.source}: only the intent {labels[0]!r} stands in train; at least two are needed")
    for split in ("validation", "test"):
        unseen = sorted({message.label for message in splits[split]} - set(labels))
        if unseen:
            named = ", ".join(repr(label) for label in unseen[:3])
            raise DataError(
                f"{dataset.source}: {split} holds {len(unseen)} label(s) that train doesn't, such as {named}; "
                "correct the spelling, or add training messages"
            )


def describe(dataset: Dataset) -> tuple[str, ...]:
    """What a reader should know: texts that stand in two splits, and texts with contradictory labels."""
    notes = []
    by_text: dict[str, set[str]] = defaultdict(set)
    for message in (*dataset.train, *dataset.validation):
        by_text[folded(message.text)].add(message.label)
    contradictory = sum(len(labels) > 1 for labels in by_text.values())
    if contradictory:
        notes.append(f"{contradictory} training text(s) carry contradictory labels")
    for split, messages in (("validation", dataset.validation), ("test", dataset.test)):
        known = {folded(message.text) for message in dataset.train}
        if split == "test":
            known |= {folded(message.text) for message in dataset.validation}
        doubled = sum(folded(message.text) in known for message in messages)
        if doubled:
            notes.append(
                f"{doubled} {split} text(s) also stand in {'train' if split == 'validation' else 'train or validation'}"
            )
    return tuple(notes)

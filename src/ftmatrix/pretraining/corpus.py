"""A folder of plain text, as packed token windows for pretraining."""

import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ftmatrix.machine import sha256_of

DOCUMENT_CHARACTERS = 600
"""Neighbouring passages are joined up to this length, so that short ones (chat lines) keep some context."""

HELD_OUT_EVERY = 100
"""One document in so many is held out and never trained on; of files with fewer documents, one in so many in all."""


@dataclass(frozen=True)
class Source:
    """One file of the corpus. `weight` multiplies its share of the training tokens (1 = its natural share)."""

    path: Path
    weight: float = 1.0

    @property
    def name(self) -> str:
        return re.sub(r"\.txt(\.xz)?$", "", self.path.name)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, in hex."""
        return sha256_of(self.path)

    def passages(self) -> Iterator[str]:
        """The non-empty lines of the file, one passage each."""
        read = lzma.open if self.path.suffix == ".xz" else open
        with read(self.path, "rt", encoding="utf-8") as lines:
            yield from (passage for line in lines if (passage := line.strip()))

    def documents(self) -> Iterator[str]:
        """Neighbouring passages joined by newlines until a document is `DOCUMENT_CHARACTERS` long."""
        held: list[str] = []
        length = 0
        for passage in self.passages():
            held.append(passage)
            length += len(passage)
            if length >= DOCUMENT_CHARACTERS:
                yield "\n".join(held)
                held, length = [], 0
        if held:
            yield "\n".join(held)


def find_sources(folder: Path, weights: dict[str, float]) -> list[Source]:
    """Every .txt and .txt.xz file of a folder, sorted by name.

    Raises:
        ValueError: the folder holds no such file, a weight names none of them, or two have one name.
    """
    paths = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.xz")])
    if not paths:
        raise ValueError(f"{folder}: no .txt or .txt.xz file to pretrain on")
    sources = [Source(path) for path in paths]
    if twice := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        raise ValueError(f"{folder}: {twice[0]}.txt and {twice[0]}.txt.xz have one name; keep one of them")
    unknown = weights.keys() - {source.name for source in sources}
    if unknown:
        raise ValueError(f"weight for {', '.join(sorted(unknown))}: no such file in {folder}")
    return [Source(source.path, weights.get(source.name, 1.0)) for source in sources]


@dataclass(frozen=True)
class Tokens:
    """One encoded source: `train` and `held_out` are uint16 token streams, `held_out_bytes` the latter's UTF-8 size."""

    source: Source
    train: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int


def encode(source: Source, tokenizer: PreTrainedTokenizerFast, cache: Path) -> Tokens:
    """Encode a source once; later calls map the arrays that the first one wrote under `cache`."""
    vocabulary = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()[:12]
    stem = f"{cache / source.path.name}-{source.digest[:12]}-{vocabulary}"
    facts = Path(f"{stem}.json")
    if not facts.exists():
        cache.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps({"held_out_bytes": _encode_to_disk(source, tokenizer, stem)}))
    return Tokens(
        source,
        np.load(f"{stem}-train.npy", mmap_mode="r"),
        np.load(f"{stem}-held-out.npy", mmap_mode="r"),
        json.loads(facts.read_text())["held_out_bytes"],
    )


def _encode_to_disk(source: Source, tokenizer: PreTrainedTokenizerFast, stem: str) -> int:
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    held_out_bytes = 0
    documents = list(source.documents())
    first = 0 if len(documents) >= HELD_OUT_EVERY else -int(hashlib.sha256(source.name.encode()).hexdigest(), 16)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for start in range(0, len(documents), 1000):
        batch = documents[start : start + 1000]
        encoded = tokenizer(batch, add_special_tokens=False)["input_ids"]
        for index, (document, ids) in enumerate(zip(batch, encoded, strict=True), start):
            stream = np.array([bos, *ids, eos], dtype=np.uint16)
            if (index - first) % HELD_OUT_EVERY == 0:
                held_out.append(stream)
                held_out_bytes += len(document.encode())
            else:
                train.append(stream)
    empty = np.zeros(0, dtype=np.uint16)
    np.save(f"{stem}-train.npy", np.concatenate([empty, *train]))
    np.save(f"{stem}-held-out.npy", np.concatenate([empty, *held_out]))
    return held_out_bytes


def pooled(sources: Sequence[Tokens], least: int) -> list[Tokens]:
    """The same tokens, those of files with fewer than `least` joined into one source a weight.

    Raises:
        ValueError: together they are too few, or nothing of them is held out.
    """
    long = [tokens for tokens in sources if len(tokens.train) >= least]
    by_weight: dict[float, list[Tokens]] = {}
    for tokens in sources:
        if len(tokens.train) < least:
            by_weight.setdefault(tokens.source.weight, []).append(tokens)
    for short in by_weight.values():
        train, held_out = (np.concatenate([getattr(t, part) for t in short]) for part in ("train", "held_out"))
        joined = Tokens(short[0].source, train, held_out, sum(tokens.held_out_bytes for tokens in short))
        long += [joined] if len(train) >= least else []
    if not long:
        raise ValueError(f"no source holds {least} tokens: the corpus is too small for windows of {least - 2}")
    if not any(len(tokens.held_out) > 1 for tokens in long):
        raise ValueError(
            f"nothing is held out to measure by: one document in {HELD_OUT_EVERY} would be, of {DOCUMENT_CHARACTERS} "
            "characters or more; take a larger corpus"
        )
    return long


class PackedWindows:
    """Random windows over all sources; the batch of a step depends on (seed, step) alone, so a resumed run reads on.

    A source is drawn in proportion to its tokens times its weight.
    """

    def __init__(self, sources: list[Tokens], *, length: int, batch: int, seed: int) -> None:
        self.sources = sources
        self.length, self.batch, self.seed = length, batch, seed
        shares = np.array([len(tokens.train) * tokens.source.weight for tokens in self.sources])
        self.shares = shares / shares.sum()

    def at(self, step: int) -> Tensor:
        """The batch of one step, int64, shape (batch, length + 1): inputs and the targets one further."""
        random = np.random.default_rng((self.seed, step))
        rows = []
        for source in random.choice(len(self.sources), size=self.batch, p=self.shares):
            stream = self.sources[source].train
            start = random.integers(len(stream) - self.length - 1)
            rows.append(np.asarray(stream[start : start + self.length + 1], dtype=np.int64))
        return torch.from_numpy(np.stack(rows))

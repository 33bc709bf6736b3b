"""A folder of plain text, as packed token windows for pretraining."""

import hashlib
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

DOCUMENT_CHARACTERS = 600
"""Neighbouring passages are joined up to this length, so that short ones (chat lines) keep some context."""

HELD_OUT_EVERY = 100
"""One document in so many is held out and never trained on."""


@dataclass(frozen=True)
class Source:
    """One file of the corpus. `weight` multiplies its share of the training tokens (1 = its natural share)."""

    path: Path
    weight: float = 1.0

    @property
    def name(self) -> str:
        return re.sub(r"\.txt(\.xz)?$", "", self.path.name)

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
        ValueError: the folder holds no such file, or a weight names none of them.
    """
    paths = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.xz")])
    if not paths:
        raise ValueError(f"{folder}: no .txt or .txt.xz file to pretrain on")
    sources = [Source(path) for path in paths]
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
    stem = cache / f"{source.name}-{source.path.stat().st_size}-{vocabulary}"
    facts = stem.with_suffix(".json")
    if not facts.exists():
        cache.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps({"held_out_bytes": _encode_to_disk(source, tokenizer, stem)}))
    return Tokens(
        source,
        np.load(f"{stem}-train.npy", mmap_mode="r"),
        np.load(f"{stem}-held-out.npy", mmap_mode="r"),
        json.loads(facts.read_text())["held_out_bytes"],
    )


def _encode_to_disk(source: Source, tokenizer: PreTrainedTokenizerFast, stem: Path) -> int:
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    held_out_bytes = 0
    documents = list(source.documents())
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for start in range(0, len(documents), 1000):
        batch = documents[start : start + 1000]
        encoded = tokenizer(batch, add_special_tokens=False)["input_ids"]
        for index, (document, ids) in enumerate(zip(batch, encoded, strict=True), start):
            stream = np.array([bos, *ids, eos], dtype=np.uint16)
            if index % HELD_OUT_EVERY == 0:
                held_out.append(stream)
                held_out_bytes += len(document.encode())
            else:
                train.append(stream)
    empty = np.zeros(0, dtype=np.uint16)
    np.save(f"{stem}-train.npy", np.concatenate([empty, *train]))
    np.save(f"{stem}-held-out.npy", np.concatenate([empty, *held_out]))
    return held_out_bytes


class PackedWindows:
    """Random windows over all sources; the batch of a step depends on (seed, step) alone, so a resumed run reads on.

    A source is drawn in proportion to its tokens times its weight.
    """

    def __init__(self, sources: list[Tokens], *, length: int, batch: int, seed: int) -> None:
        self.sources = [tokens for tokens in sources if len(tokens.train) > length + 1]
        if not self.sources:
            raise ValueError(f"no source holds {length + 2} tokens: the corpus is too small for windows of {length}")
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

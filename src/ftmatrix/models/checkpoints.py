"""What a model folder holds, found out without loading it."""

import hashlib
import json
import math
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftmatrix.errors import ModelError, first_line
from ftmatrix.models.foreign import refuse_foreign

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

SMALL_MODEL_PARAMETERS = 50_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A model folder on this machine.

    `revision` is the hub's commit, a digest of a local folder's content, or the kind and the SHA-256 of the quantised
    file that the folder was made from.
    """

    folder: Path
    revision: str
    parameters: int
    quantized_file: str | None = None
    """The quantised file that the weights come from, by name and kind; None where they were never quantised."""

    @property
    def is_small(self) -> bool:
        """Whether a step takes so little that its overheads count: threads, allocations."""
        return self.parameters < SMALL_MODEL_PARAMETERS

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer's file is there."""
        return has_tokenizer(self.folder)


@dataclass(frozen=True)
class Limits:
    """What a model's embeddings know: tokens below `vocabulary`, and at most so many positions (None: any number)."""

    vocabulary: int
    positions: int | None = None


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's file is there."""
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def count_parameters(folder: Path, named: str) -> int:
    """Check that a folder can hold a model, and count its parameters from the safetensors headers.

    Raises:
        ModelError: a file is missing, truncated or of a kind that could run code.
    """
    if not folder.is_dir():
        raise ModelError(f"{named}: {folder} is no folder; name one with config.json, tokenizer and safetensors")
    refuse_foreign(folder, named)
    if not (folder / "config.json").exists():
        raise ModelError(f"{named}: no config.json in {folder}; is it a Hugging Face model folder?")
    if not has_tokenizer(folder):
        raise ModelError(f"{named}: no tokenizer in {folder}; save it there with tokenizer.save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{named}: no safetensors in {folder}; pickled weights are never loaded, convert them with "
            "save_pretrained(safe_serialization=True)"
        )
    return sum(parameters_in(path) for path in weights)


class StoredTensors:
    """The weights of a model folder, read one at a time by their names in the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}

    def __enter__(self) -> "StoredTensors":
        from safetensors import safe_open

        self._open = ExitStack()
        for path in sorted(self.folder.glob("*.safetensors")):
            file = self._open.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._files = {}
        self._open.close()

    def get(self, name: str) -> "Tensor | None":
        """A tensor on the CPU; None where the folder names none so."""
        return self._files[name].get_tensor(name) if name in self._files else None


def parameters_in(path: Path) -> int:
    """Elements of all tensors in a safetensors file, by its header.

    Raises:
        ModelError: it is no such file, or truncated.
    """
    try:
        header = _safetensors_header(path)
        spans = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in spans), default=0)
        complete = path.stat().st_size >= 8 + _header_length(path) + end
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path}: not a safetensors file ({first_line(error)})") from error
    if not complete:
        raise ModelError(f"{path}: truncated, shorter than its header says; download or save it again")
    return sum(math.prod(entry["shape"]) for entry in spans)


def _header_length(path: Path) -> int:
    """Bytes of a safetensors file's JSON header."""
    with path.open("rb") as file:
        return int(struct.unpack("<Q", file.read(8))[0])


def _safetensors_header(path: Path) -> dict[str, Any]:
    length = _header_length(path)
    if length > min(path.stat().st_size, 100_000_000):
        raise ValueError("header longer than the file")
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header is no object")
    return header


def digest(folder: Path) -> str:
    """A digest of everything in a local folder that decides what the model computes."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors", ".model", ".txt") and path.is_file():
            with path.open("rb") as file:
                content.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()[:40]

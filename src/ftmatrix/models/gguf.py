"""GGUF files, judged by their header."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ftmatrix.errors import ModelError, first_line
from ftmatrix.machine import replacing, sha256_of
from ftmatrix.models.cache import cache_folder

MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file's header says. `sha256` is of the whole file, in hex."""

    path: Path
    sha256: str
    architecture: str
    quantization: str
    """The kind of quantisation by its customary name, such as Q4_K_M."""
    parameters: int

    @property
    def revision(self) -> str:
        """What runs record as the model's revision: that the weights were quantised, how, and which they were."""
        return f"GGUF {self.quantization} {self.sha256}"


def find_gguf(path: Path, named: str) -> Path | None:
    """The GGUF file that a path names: itself, or the only one in a folder without a config.json. None: it has none.

    Raises:
        ModelError: the folder holds several.
    """
    if path.suffix.lower() == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise ModelError(f"{named}: the folder holds {len(files)} GGUF files; name one of them: {listed}")
    return files[0] if files else None


def read_gguf(path: Path, named: str) -> GgufFile:
    """Check a GGUF file by its header.

    Raises:
        ModelError: it is missing, damaged, truncated, one part of several, or holds no tokenizer.
    """
    if not path.is_file():
        raise ModelError(f"{named}: {path} is no file")
    note = _note_of(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(note.with_suffix(".lock")):
        if note.exists():
            return GgufFile(path, **json.loads(note.read_text(encoding="utf-8")))
        file = _read(path, named)
        facts = {key: value for key, value in asdict(file).items() if key != "path"}
        with replacing(note) as out:
            out.write(json.dumps(facts).encode())
    return file


def _note_of(path: Path) -> Path:
    """Where a header's facts are kept: reading a large vocabulary takes seconds. One written anew has another."""
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    return cache_folder() / "models" / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"


def _read(path: Path, named: str) -> GgufFile:
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{named}: {path} is no GGUF file, whatever its name says; download it again")
    from gguf import GGUFReader, LlamaFileType

    try:
        reader = GGUFReader(path)
        tensors = reader.tensors
        parameters = sum(int(tensor.n_elements) for tensor in tensors)
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in tensors), default=0)
    except Exception as error:  # the reader meets a damaged file with whatever numpy says of it
        raise ModelError(f"{named}: {path} is damaged or truncated; download it again ({first_line(error)})") from error
    if path.stat().st_size < end or not tensors:
        raise ModelError(f"{named}: {path} is truncated, shorter than its header says; download it again")
    parts = _value(reader, "split.count") or 1
    if parts > 1:
        raise ModelError(
            f"{named}: {path.name} is one of {parts} parts; join them first: llama-gguf-split --merge FIRST OUTPUT"
        )
    if _value(reader, "tokenizer.ggml.model") is None:
        raise ModelError(f"{named}: {path.name} holds no tokenizer; take a file that does")
    kind = _value(reader, "general.file_type")
    known = {member.value: member.name for member in LlamaFileType}
    quantization = known.get(kind, "of unknown kind").removeprefix("MOSTLY_").removeprefix("ALL_")
    architecture = str(_value(reader, "general.architecture"))
    return GgufFile(path, sha256_of(path), architecture, quantization, parameters)


def _value(reader: Any, key: str) -> Any:
    """A value of the header; None where it isn't there."""
    field = reader.get_field(key)
    return None if field is None else field.contents()

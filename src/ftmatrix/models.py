"""Where a pretrained causal LM comes from, and how it is loaded: safetensors only, never remote code."""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from ftmatrix.errors import ConfigError, ModelError
from ftmatrix.hub import Repository, download

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = Path(__file__).parent / "pocket"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder on this machine. `revision` is the hub's commit, or a digest of a local folder's content."""

    folder: Path
    revision: str
    parameters: int


@dataclass
class Model:
    """A pretrained causal LM: packaged with this project, a local folder, or a hub repository."""

    name: str = MISSING
    """What tables and run names call it."""
    hub_id: str | None = None
    """Repository on the Hugging Face hub, as owner/name."""
    revision: str = "main"
    """Branch, tag or commit of the hub repository; the commit it resolved to is recorded."""
    gated: bool = False
    """Whether the hub asks to accept a licence first."""
    path: str | None = None
    """Folder of a Hugging Face model on this machine."""
    attention: str = "sdpa"
    """Attention implementation: sdpa, or eager where the architecture needs it (logit soft-capping)."""

    @property
    def title(self) -> str:
        """The name, or a local folder's own."""
        return Path(self.path).expanduser().resolve().name if self.path else self.name

    def check(self) -> None:
        """Refuse contradictory settings.

        Raises:
            ConfigError: there is no source, or an unknown attention implementation.
        """
        if self.attention not in (known := ("sdpa", "eager", "flash_attention_2")):
            raise ConfigError(f"model.attention={self.attention}: available: {', '.join(known)}")
        if self.name == "local" and self.path is None:
            raise ConfigError("model=local needs model.path=DIR, a folder with config.json, tokenizer and safetensors")

    def locate(self) -> Checkpoint:
        """The folder to load from; a hub model is downloaded, or found in the hub's cache.

        Raises:
            ModelError: nothing usable there, or the hub can't be reached.
            GatedError: the licence has to be accepted first.
        """
        if self.path is not None:
            folder = Path(self.path).expanduser()
            return Checkpoint(folder, _digest(folder), _inspect(folder, f"model.path={self.path}"))
        if self.hub_id is None:
            folder = PACKAGED / self.name
            return Checkpoint(folder, _digest(folder), _inspect(folder, f"model={self.name}"))
        patterns = ("*.json", "*.safetensors", "*.txt", "tokenizer.model", "*.jinja")
        snapshot = download(Repository(self.hub_id, self.revision, gated=self.gated), f"model={self.name}", patterns)
        return Checkpoint(snapshot.folder, snapshot.commit, _inspect(snapshot.folder, f"model={self.name}"))


def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        ModelError: there is none, or it has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint.folder}: the tokenizer can't be read ({_first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{checkpoint.folder}: the tokenizer has no end token, so no answer could ever end")
    return tokenizer


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: "torch.dtype",
    device: str,
    quantization: "BitsAndBytesConfig | None" = None,
    attention: str = "sdpa",
) -> "PreTrainedModel":
    """The model's weights in `dtype` on `device`, quantised on the way where asked.

    Raises:
        ModelError: the folder holds no causal LM that can be loaded without running its own code.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device},
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint.folder}: not a causal LM that can be loaded ({_first_line(error)})") from error
    model.config.use_cache = False
    return model


def _inspect(folder: Path, named: str) -> int:
    """Check that a folder can hold a model, and count its parameters from the safetensors headers.

    Raises:
        ModelError: a file is missing, truncated or of a kind that could run code.
    """
    if not folder.is_dir():
        raise ModelError(f"{named}: {folder} is no folder; name one with config.json, tokenizer and safetensors")
    if not (folder / "config.json").exists():
        raise ModelError(f"{named}: no config.json in {folder}; is it a Hugging Face model folder?")
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ModelError(f"{named}: no tokenizer in {folder}; save it there with tokenizer.save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{named}: no safetensors in {folder}; pickled weights are never loaded, convert them with "
            "save_pretrained(safe_serialization=True)"
        )
    return sum(_count_parameters(path) for path in weights)


def _count_parameters(path: Path) -> int:
    try:
        header = _safetensors_header(path)
        spans = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in spans), default=0)
        complete = path.stat().st_size >= 8 + header_length(path) + end
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path}: not a safetensors file ({_first_line(error)})") from error
    if not complete:
        raise ModelError(f"{path}: truncated, shorter than its header says; download or save it again")
    sizes = []
    for entry in spans:
        size = 1
        for length in entry["shape"]:
            size *= length
        sizes.append(size)
    return sum(sizes)


def header_length(path: Path) -> int:
    """Bytes of a safetensors file's JSON header."""
    with path.open("rb") as file:
        return int(struct.unpack("<Q", file.read(8))[0])


def _safetensors_header(path: Path) -> dict[str, Any]:
    length = header_length(path)
    if length > min(path.stat().st_size, 100_000_000):
        raise ValueError("header longer than the file")
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header is no object")
    return header


def _digest(folder: Path) -> str:
    """A content digest of a local folder: small files whole, large ones by size and 64 evenly spread blocks."""
    block, blocks = 65_536, 64
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".json", ".safetensors", ".model", ".txt") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            if size <= block * blocks:
                digest.update(file.read())
                continue
            for index in range(blocks):
                file.seek(index * (size - block) // (blocks - 1))
                digest.update(file.read(block))
    return digest.hexdigest()[:40]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

"""Models in a GGUF file, turned into a folder of safetensors once.

The folder lies in the user's cache under the SHA-256 of the file's content, so that several cells and several sweeps
share it, and a file that changes is another model.
"""

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock

from ftmatrix.errors import ModelError, first_line
from ftmatrix.models.cache import cache_folder
from ftmatrix.models.gguf import GgufFile
from ftmatrix.models.silence import without_progress_bars

DTYPE = "float32"
"""What quantised weights are turned into: exact, whatever the cell computes in."""

CHECKED = f"{DTYPE}-checked"
"""What a folder's name ends with, other than those that were made before tokenizers were held against their file."""
LOOKED_AT = 1000
"""How many of a tokenizer's tokens, and of its words, are held against the file."""
WORD = re.compile("[▁Ġ][a-z]{4,9}")
"""A token that is a word after a space, as SentencePiece and byte-level vocabularies write it."""


def outline(file: GgufFile, named: str) -> Path:
    """A folder with the model's config alone, made from the file's header: what a forecast needs.

    Raises:
        ModelError: transformers can't read models of this architecture from GGUF.
    """
    return _made_once(_folder(file, "config"), lambda: (_config(file, named),))


def converted(file: GgufFile) -> Path | None:
    """The folder of safetensors made from a file earlier; None where there is none yet."""
    folder = _folder(file, CHECKED)
    return folder if _is_whole(folder) else None


def convert(file: GgufFile, named: str) -> Path:
    """The folder of safetensors and tokenizer made from a file: dequantised by transformers, once.

    Several processes may ask at once: one converts, the others wait. The folder appears whole or not at all.

    Raises:
        ModelError: transformers can't read the file's model or its tokenizer, or tensors are missing.
    """
    return _made_once(_folder(file, CHECKED), lambda: _dequantised(file, named))


def _config(file: GgufFile, named: str) -> Any:
    """The config that a GGUF file's header comes to."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise _unreadable(file, named, error) from error


def _dequantised(file: GgufFile, named: str) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, in float32."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.path.name, "local_files_only": True}
    try:
        with without_progress_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' words about one another's deprecated names
            tokenizer = AutoTokenizer.from_pretrained(file.path.parent, **where)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.path.parent, dtype=torch.float32, output_loading_info=True, **where
            )
    except Exception as error:  # whatever the reader of a format says of a file that isn't of it
        raise _unreadable(file, named, error) from error
    if wrong := _misread(tokenizer, file.path):
        raise ModelError(
            f"{named}: transformers {transformers.__version__} reads the tokenizer of {file.path.name} wrongly "
            f"({wrong}); update transformers, or take the model's safetensors instead"
        )
    model, found = loaded
    if missing := sorted(map(str, found.get("missing_keys") or ())):
        raise ModelError(f"{named}: {file.path.name} lacks {len(missing)} tensor(s), such as {missing[0]}")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is no longer quantised
    model.hf_quantizer = None
    return model, tokenizer


def _misread(tokenizer: Any, path: Path) -> str | None:
    """In which way a tokenizer isn't the one of its file; None where it is.

    Its tokens must be the file's, each at its place, and whole words one token: without the file's merges a tokenizer
    of word pieces gives letters, and a model trained on letters is a bad one that nobody notices.
    """
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.tokens")
    assert field is not None  # `read_gguf` has refused a file without
    tokens = [bytes(field.parts[place]).decode("utf-8", "replace") for place in field.data]
    for place in range(0, len(tokens), max(1, len(tokens) // LOOKED_AT)):
        found = tokenizer.convert_ids_to_tokens(place)
        if found != tokens[place]:
            return f"token {place} is {tokens[place]!r} in the file and {found!r} here"
    words = [token[1:] for token in tokens if WORD.fullmatch(token)][:LOOKED_AT]
    split = [word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) > 1]
    return f"{split[0]!r} is one token in the file and several here" if 2 * len(split) > len(words) else None


def _unreadable(file: GgufFile, named: str, error: Exception) -> ModelError:
    return ModelError(
        f"{named}: transformers can't read a {file.architecture!r} model from {file.path.name} ({first_line(error)}); "
        "take its safetensors instead"
    )


def _folder(file: GgufFile, kind: str) -> Path:
    return cache_folder() / "models" / f"{file.sha256[:40]}-{kind}"


def _is_whole(folder: Path) -> bool:
    """Whether a folder has been made: it appears with all that belongs to it."""
    return (folder / "config.json").exists()


def _made_once(folder: Path, make: Callable[[], tuple[Any, ...]]) -> Path:
    """The folder, made from what `make` gives unless it is there; by one process at a time."""
    if not _is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_whole(folder):
                _keep(folder, *make())
    return folder


def _keep(folder: Path, *parts: Any) -> None:
    """Save parts of a model as a folder that appears whole."""
    made = Path(mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        with without_progress_bars():
            for part in parts:
                part.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)

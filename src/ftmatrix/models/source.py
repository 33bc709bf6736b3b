"""Where a pretrained causal LM comes from: this package, a package registry, a folder or GGUF file, a hub."""

import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ftmatrix.errors import ConfigError, ModelError, NotFetchedError
from ftmatrix.machine import Accelerator, Device, Precision, Repository, cached_config, download
from ftmatrix.models.checkpoints import Checkpoint, count_parameters, digest
from ftmatrix.models.gguf import find_gguf, read_gguf
from ftmatrix.models.gguf_conversion import convert, converted, outline
from ftmatrix.models.loading import empty_model
from ftmatrix.models.wheels import MODELS as WHEEL_MODELS
from ftmatrix.models.wheels import locate_file
from ftmatrix.roles import execution, resolved, result

PACKAGED = Path(__file__).parents[1] / "pocket"
ARCHITECTURES = Path(__file__).parents[1] / "architectures"
"""The configs of well-known hub models, as OWNER--NAME/config.json."""


@dataclass
class Model:
    """A pretrained causal LM: packaged here, in a package registry's wheels, a folder or GGUF file here, or a hub's."""

    name: str = resolved(MISSING, compared=False)
    """What tables and run names call it."""
    hub_id: str | None = resolved(None)
    """Repository on the Hugging Face hub, as owner/name."""
    revision: str = resolved("main", compared=False)
    """Branch, tag or commit of the hub repository; the commit it resolved to is recorded."""
    gated: bool = execution(False, recorded=True)
    """Whether the hub asks to accept a licence first."""
    path: str | None = resolved(None, recorded=False)
    """Folder of a Hugging Face model on this machine, or a GGUF file (or a folder that holds one)."""
    attention: str = result("auto")
    """Attention implementation: sdpa, eager, flash_attention_2; auto: sdpa where the architecture supports it."""
    from_scratch: bool = result(False)
    """Start from random weights, seeded by the cell, in the model's architecture: what its pretraining is worth."""

    @property
    def title(self) -> str:
        """The name; a local folder's own; a hub repository's own."""
        name = self.hub_id.split("/")[1] if self.name == "hub" and self.hub_id else self.name
        if self.path:
            path = Path(self.path).expanduser().resolve()
            name = path.stem if path.suffix.lower() == ".gguf" else path.name
        return f"{name} from scratch" if self.from_scratch else name

    def check(self) -> None:
        """Refuse contradictory settings.

        Raises:
            ConfigError: there is no source, or an unknown attention implementation.
        """
        if self.attention not in (known := ("auto", "sdpa", "eager", "flash_attention_2")):
            raise ConfigError(f"model.attention={self.attention}: available: {', '.join(known)}")
        if self.name == "hub" and self.hub_id is None:
            raise ConfigError("model=hub needs model.hub_id=OWNER/NAME, a repository on the Hugging Face hub")
        if self.hub_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_id):
            raise ConfigError(f"model.hub_id={self.hub_id}: must be OWNER/NAME, as on the repository's page")
        if self.name == "local" and self.path is None:
            raise ConfigError(
                "model=local needs model.path=DIR, a folder with config.json, tokenizer and safetensors, or a GGUF file"
            )

    def unsupported_on(self, accelerator: Accelerator, precision: Precision) -> str | None:
        """Why the model can't run as asked on a device and in a precision; None where it can."""
        if self.attention != "flash_attention_2":
            return None
        if accelerator.device is not Device.cuda:
            return f"needs a CUDA GPU, not {accelerator.name}; take model.attention=sdpa"
        if find_spec("flash_attn") is None:
            return "needs the package flash-attn; install it, or take model.attention=sdpa"
        if precision is Precision.fp32:
            return "computes in 16 bits alone; take training.precision=mixed or bf16, or model.attention=sdpa"
        return None

    def locate(self, *, fetch: bool = True) -> Checkpoint:
        """The folder to load from; a hub model is found in the hub's cache, or downloaded if `fetch` allows it.

        Raises:
            ModelError: nothing usable there, or the hub can't be reached.
            GatedError: the licence has to be accepted first.
            NotFetchedError: a download would be needed, and `fetch` forbids it.
        """
        if file := self._gguf(fetch=fetch):
            return self._from_gguf(file, fetch=fetch)
        if self.path is not None:
            folder = Path(self.path).expanduser()
            return Checkpoint(folder, digest(folder), count_parameters(folder, self._named))
        if self.hub_id is None:
            folder = PACKAGED / self.name
            return Checkpoint(folder, digest(folder), count_parameters(folder, self._named))
        patterns = ("*.json", "*.safetensors", "*.txt", "tokenizer.model", "*.jinja")
        repository = Repository(self.hub_id, self.revision, gated=self.gated)
        snapshot = download(repository, f"model={self.name}", patterns, fetch=fetch)
        try:
            parameters = count_parameters(snapshot.folder, f"model={self.name}")
        except ModelError as error:
            if fetch:
                raise
            raise NotFetchedError(
                f"model={self.name}: only a part of {self.hub_id} is in the cache; a sweep fetches the rest first"
            ) from error
        return Checkpoint(snapshot.folder, snapshot.commit, parameters)

    @property
    def _named(self) -> str:
        """The setting that says where the model is, as error messages begin."""
        return f"model={self.name}" if self.path is None else f"model.path={self.path}"

    def _gguf(self, *, fetch: bool) -> Path | None:
        """The GGUF file that the model comes from; None for any other kind."""
        if self.path is not None:
            return find_gguf(Path(self.path).expanduser(), self._named)
        if self.name in WHEEL_MODELS and self.hub_id is None:
            return locate_file(self.name, fetch=fetch, say=lambda line: print(line, file=sys.stderr, flush=True))
        return None

    def _from_gguf(self, path: Path, *, fetch: bool) -> Checkpoint:
        file = read_gguf(path, self._named)
        if not fetch and converted(file) is None:
            raise NotFetchedError(f"{self._named}: {path.name} isn't converted yet; a sweep does it first, once")
        folder = convert(file, self._named)
        parameters = count_parameters(folder, self._named)
        return Checkpoint(folder, file.revision, parameters, f"{path.name} ({file.quantization})")

    def architecture(self) -> Checkpoint | None:
        """The config, without weights, of a model that has to be fetched or converted first; None: nothing is known.

        A hub model's is cached or bundled, a GGUF file's is made from its header.

        Raises:
            ModelError: the config is no causal LM's.
        """
        try:
            file = self._gguf(fetch=False)
        except NotFetchedError:
            file = None
        if file is not None:
            folder: Path | None = outline(read_gguf(file, self._named), self._named)
        elif self.path is None and self.name in WHEEL_MODELS and self.hub_id is None:
            folder = ARCHITECTURES / WHEEL_MODELS[self.name].architecture
        elif self.hub_id is not None:
            bundled = ARCHITECTURES / self.hub_id.replace("/", "--")
            folder = cached_config(Repository(self.hub_id, self.revision)) or (bundled if bundled.is_dir() else None)
        else:
            folder = None
        if folder is None:
            return None
        model: Any = empty_model(Checkpoint(folder, "", 0), attention=self.attention)
        return Checkpoint(folder, "", sum(parameter.numel() for parameter in model.parameters()))

"""Where a pretrained causal LM comes from, and how it is loaded: safetensors only, never remote code."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import MISSING
from safetensors import SafetensorError

from ftmatrix.checkpoints import Checkpoint, count_parameters, digest
from ftmatrix.errors import ConfigError, ModelError, NotFetchedError, first_line
from ftmatrix.hardware import Accelerator, Device
from ftmatrix.hub import Repository, cached_config, download

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = Path(__file__).parent / "pocket"
ARCHITECTURES = Path(__file__).parent / "architectures"
"""The configs of well-known hub models, as OWNER--NAME/config.json."""


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
    """Attention implementation: sdpa, eager where the architecture needs it (logit soft-capping), flash_attention_2."""
    from_scratch: bool = False
    """Start from random weights, seeded by the cell, in the model's architecture: what its pretraining is worth."""

    @property
    def title(self) -> str:
        """The name; a local folder's own; a hub repository's own."""
        name = self.hub_id.split("/")[1] if self.name == "hub" and self.hub_id else self.name
        if self.path:
            name = Path(self.path).expanduser().resolve().name
        return f"{name} from scratch" if self.from_scratch else name

    def check(self) -> None:
        """Refuse contradictory settings.

        Raises:
            ConfigError: there is no source, or an unknown attention implementation.
        """
        if self.attention not in (known := ("sdpa", "eager", "flash_attention_2")):
            raise ConfigError(f"model.attention={self.attention}: available: {', '.join(known)}")
        if self.name == "hub" and self.hub_id is None:
            raise ConfigError("model=hub needs model.hub_id=OWNER/NAME, a repository on the Hugging Face hub")
        if self.hub_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_id):
            raise ConfigError(f"model.hub_id={self.hub_id}: must be OWNER/NAME, as on the repository's page")
        if self.name == "local" and self.path is None:
            raise ConfigError("model=local needs model.path=DIR, a folder with config.json, tokenizer and safetensors")

    def unsupported_on(self, accelerator: Accelerator) -> str | None:
        """Why the model can't run as asked on a device; None where it can."""
        if self.attention != "flash_attention_2":
            return None
        if accelerator.device is not Device.cuda:
            return f"needs a CUDA GPU, not {accelerator.name}; take model.attention=sdpa"
        if find_spec("flash_attn") is None:
            return "needs the package flash-attn; install it, or take model.attention=sdpa"
        return None

    def locate(self, *, fetch: bool = True) -> Checkpoint:
        """The folder to load from; a hub model is found in the hub's cache, or downloaded if `fetch` allows it.

        Raises:
            ModelError: nothing usable there, or the hub can't be reached.
            GatedError: the licence has to be accepted first.
            NotFetchedError: a download would be needed, and `fetch` forbids it.
        """
        if self.path is not None:
            folder = Path(self.path).expanduser()
            return Checkpoint(folder, digest(folder), count_parameters(folder, f"model.path={self.path}"))
        if self.hub_id is None:
            folder = PACKAGED / self.name
            return Checkpoint(folder, digest(folder), count_parameters(folder, f"model={self.name}"))
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

    def architecture(self) -> Checkpoint | None:
        """The config of a hub model that isn't on this machine: cached or bundled (None: neither), without weights.

        Raises:
            ModelError: the config is no causal LM's.
        """
        if self.hub_id is None:
            return None
        bundled = ARCHITECTURES / self.hub_id.replace("/", "--")
        folder = cached_config(Repository(self.hub_id, self.revision)) or (bundled if bundled.is_dir() else None)
        if folder is None:
            return None
        model: Any = empty_model(Checkpoint(folder, "", 0), attention=self.attention)
        return Checkpoint(folder, "", sum(parameter.numel() for parameter in model.parameters()))


def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        ModelError: there is none, or it has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint.folder}: the tokenizer can't be read ({first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{checkpoint.folder}: the tokenizer has no end token, so no answer could ever end")
    return tokenizer


def vocabulary(checkpoint: Checkpoint) -> int:
    """Tokens that the model's embeddings know, by its config.

    Raises:
        ModelError: the config can't be read.
    """
    from transformers import AutoConfig

    with _refusals(checkpoint):
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
        return int(config.get_text_config().vocab_size)


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: "torch.dtype | str",
    device: str,
    quantization: "BitsAndBytesConfig | None" = None,
    attention: str = "sdpa",
) -> "PreTrainedModel":
    """The model's weights in `dtype` on `device`, quantised on the way where asked.

    Raises:
        ModelError: the folder holds no causal LM that can be loaded without running its own code.
    """
    from transformers import AutoModelForCausalLM

    with _refusals(checkpoint):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device},
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, found = loaded
        _check_complete(checkpoint, found)
    return _bared(model)


def build_model(
    checkpoint: Checkpoint, *, dtype: "torch.dtype | str", device: str, attention: str = "sdpa"
) -> "PreTrainedModel":
    """The model's architecture with new, random weights, drawn from torch's present random state.

    Raises:
        ModelError: the folder's config is no causal LM's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with _refusals(checkpoint):
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        model.to(device)
    return _bared(model)


def empty_model(
    checkpoint: Checkpoint, *, dtype: "torch.dtype | None" = None, attention: str = "sdpa"
) -> "PreTrainedModel":
    """The model's architecture on the `meta` device: shapes without memory.

    Raises:
        ModelError: the folder's config is no causal LM's.
    """
    import torch

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' words about one another's deprecated names
        return build_model(checkpoint, dtype=dtype or torch.float32, device="meta", attention=attention)


@contextmanager
def _refusals(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(f"{checkpoint.folder}: not a causal LM that can be loaded ({first_line(error)})") from error


def _bared(model: Any) -> "PreTrainedModel":
    """The model without penalties or sampling of its own: it is evaluated, and saved, with greedy decoding."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    return cast("PreTrainedModel", model)


def _check_complete(checkpoint: Checkpoint, found: dict[str, Any]) -> None:
    """Refuse a checkpoint whose gaps would be filled with random weights.

    Raises:
        ModelError: a tensor is missing, or of another shape than the config says.
    """
    wanting = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in found.get(key) or ())
    if wanting:
        raise ModelError(
            f"{checkpoint.folder}: {len(wanting)} tensor(s) are missing or misshapen, such as "
            f"{wanting[0]}; download or save it again"
        )

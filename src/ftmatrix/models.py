"""Where a pretrained causal LM comes from, and how it is loaded: safetensors only, never remote code."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import MISSING

from ftmatrix.checkpoints import Checkpoint, count_parameters, digest
from ftmatrix.errors import ConfigError, ModelError, first_line
from ftmatrix.hub import Repository, download

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = Path(__file__).parent / "pocket"


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
    from_scratch: bool = False
    """Start from random weights, seeded by the cell, in the model's architecture: what its pretraining is worth."""

    @property
    def title(self) -> str:
        """The name, or a local folder's own."""
        name = Path(self.path).expanduser().resolve().name if self.path else self.name
        return f"{name} from scratch" if self.from_scratch else name

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
            return Checkpoint(folder, digest(folder), count_parameters(folder, f"model.path={self.path}"))
        if self.hub_id is None:
            folder = PACKAGED / self.name
            return Checkpoint(folder, digest(folder), count_parameters(folder, f"model={self.name}"))
        patterns = ("*.json", "*.safetensors", "*.txt", "tokenizer.model", "*.jinja")
        snapshot = download(Repository(self.hub_id, self.revision, gated=self.gated), f"model={self.name}", patterns)
        return Checkpoint(snapshot.folder, snapshot.commit, count_parameters(snapshot.folder, f"model={self.name}"))


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


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: "torch.dtype",
    device: str,
    quantization: "BitsAndBytesConfig | None" = None,
    attention: str = "sdpa",
    from_scratch: bool = False,
) -> "PreTrainedModel":
    """The model's weights in `dtype` on `device`, quantised on the way where asked; or new, random ones.

    Raises:
        ModelError: the folder holds no causal LM that can be loaded without running its own code.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if from_scratch:
            config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
            model.to(device)
        else:
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
        raise ModelError(f"{checkpoint.folder}: not a causal LM that can be loaded ({first_line(error)})") from error
    model.config.use_cache = False
    return cast("PreTrainedModel", model)

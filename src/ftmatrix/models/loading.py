"""How a causal LM is loaded: safetensors only, never remote code."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError

from ftmatrix.errors import ModelError, first_line
from ftmatrix.models.checkpoints import Checkpoint, Limits
from ftmatrix.models.foreign import quantized_by
from ftmatrix.models.silence import without_progress_bars

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase


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

    with _refusals(checkpoint), without_progress_bars():
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

"""Model folders that hold something else than a plain causal LM: told by their small files, before any loading."""

import json
import re
from pathlib import Path
from typing import Any

from ftmatrix.errors import ModelError

NO_GENERATOR = re.compile(
    r"For(Sequence|Token|Image|Audio\w*)Classification$|ForQuestionAnswering$|ForMultipleChoice$|ForMaskedLM$"
)
"""Architectures whose head can't write text."""
FOUR_BITS = "bitsandbytes, 4 bits"


def refuse_foreign(folder: Path, named: str) -> None:
    """Refuse a folder that holds an adapter, alone or beside a model, or a model that writes no text.

    Raises:
        ModelError: it does; the message says what it is, and the way on.
    """
    adapter, config = _read(folder / "adapter_config.json"), _read(folder / "config.json")
    if adapter is not None and config is None:
        base = adapter.get("base_model_name_or_path") or "its base"
        raise ModelError(
            f"{named}: {folder} holds an adapter of {base}, not a model; merge it into its base first: "
            f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), {str(folder)!r})"
            ".merge_and_unload().save_pretrained(DIR)"
        )
    if adapter is not None:
        raise ModelError(
            f"{named}: {folder} holds a whole model and an adapter (adapter_config.json), and which of them is meant "
            "can't be known; move one of them into a folder of its own"
        )
    for architecture in (config or {}).get("architectures") or ():
        if NO_GENERATOR.search(str(architecture)):
            raise ModelError(
                f"{named}: {folder} holds {architecture}, which writes no text; take the causal LM it was made from"
            )


def quantized_by(folder: Path) -> str | None:
    """How a folder's weights are quantised already, by its config; None where they aren't."""
    settings = (_read(folder / "config.json") or {}).get("quantization_config")
    if not isinstance(settings, dict):
        return None
    method = str(settings.get("quant_method", "an unknown method"))
    return FOUR_BITS if method == "bitsandbytes" and settings.get("load_in_4bit") else method


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""Models of real shapes to measure with: random weights, and the packaged tokenizer."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftmatrix.models import PACKAGED
from ftmatrix.models.source import ARCHITECTURES

SHAPES = {"smollm2-135m": "HuggingFaceTB--SmolLM2-135M", "gemma3-270m": "google--gemma-3-270m"}


def build(folder: Path, name: str) -> Path:
    """A model of a real shape, as a hub would have it: bf16 safetensors with a tokenizer. Packaged ones as they are."""
    if (packaged := PACKAGED / name).is_dir():
        return packaged
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "pocket-1m")
    config = AutoConfig.from_pretrained(ARCHITECTURES / SHAPES[name])
    config.update({f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name

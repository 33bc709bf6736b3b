"""Forecast against measured peak memory: real cells of real shapes, with random weights.

Three methods x two models x two batch shapes. The device is what there is; on a CPU the measured figure is the resident
set, so the command is run with an allocator that returns memory at once (MALLOC_* below), as is said beside the table.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig

from ftmatrix.models import PACKAGED

MODELS = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "gemma3-270m": Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512, tie_word_embeddings=True,
    ),
}  # fmt: skip
BATCHES = (16, 4)
SHORT = ("data=pocket", "data.limit=64", "data.test_limit=26", "training.epochs=1", "evaluation.forgetting=false")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""glibc: every block of 256 KiB or more is mapped on its own and given back when it is freed."""


def build(folder: Path, name: str) -> Path:
    """A model of a real shape, as a hub would have it: bf16 safetensors with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "pocket-1m")
    config = MODELS[name]
    config.update({f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


def main() -> None:
    table = Table("model", "method", "batch", "forecast MiB", "measured MiB", "error %", title="Peak while training")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        for name in MODELS:
            path = build(folder, name)
            grid = ("method=full,lora,qlora", f"training.batch_size={','.join(map(str, BATCHES))}", "lr=1e-5")
            subprocess.run(
                [Path(sys.executable).with_name("ftmatrix"), *grid, "model=local", f"model.path={path}", *SHORT,
                 "n_jobs=1", "study=memory"],
                cwd=folder,
                env=os.environ | MALLOC | {"MLFLOW_TRACKING_URI": uri},
                check=True,
            )  # fmt: skip
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = client.search_experiments(filter_string="name = 'memory'")
        runs = client.search_runs([experiment.experiment_id], "tags.complete = 'true'")
        for run in sorted(runs, key=lambda run: (run.data.tags["model"], run.data.tags["method"])):
            figures = run.data.metrics
            table.add_row(
                run.data.tags["model"],
                run.data.tags["method"],
                run.data.params["training.batch_size"],
                f"{figures['forecast_bytes_train'] / 2**20:,.0f}",
                f"{figures['peak_bytes_train'] / 2**20:,.0f}",
                f"{100 * figures['forecast_error']:+.1f}",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

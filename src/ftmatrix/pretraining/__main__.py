"""`python -m ftmatrix.pretraining`: train a tokenizer once, then a pocket model on any folder of text."""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import torch
import transformers
from mlflow.exceptions import MlflowException
from transformers import PreTrainedTokenizerFast

from ftmatrix.machine import processor_name
from ftmatrix.pretraining.corpus import encode, find_sources
from ftmatrix.pretraining.run import Plan, Pretraining, Progress
from ftmatrix.pretraining.sizes import SIZES
from ftmatrix.pretraining.tokenizer import train_tokenizer


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    sources = find_sources(options.corpus, dict(options.weight))
    vocabulary = options.work / "tokenizer"
    if not (vocabulary / "tokenizer.json").exists():
        print("training the tokenizer", flush=True)
        train_tokenizer(sources).save_pretrained(vocabulary)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(vocabulary)
    tokens = [encode(source, tokenizer, options.work / "tokens") for source in sources]
    plan = Plan(
        size=options.size,
        tokens=options.tokens,
        length=options.length,
        batch=options.batch,
        seed=options.seed,
        bf16=options.bf16,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = Pretraining(plan, tokenizer, tokens, device)

    folder = options.work / options.size
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, plateau = folder / "checkpoint.pt", folder / "plateau.pt"
    curve, run_file = folder / "curve.jsonl", folder / "mlflow-run"
    _resume(training, checkpoint, plateau)
    _cut(curve, training.step)

    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    mlflow.set_experiment("pretraining")
    run_id = _run_to_continue(run_file) if training.step else None
    with mlflow.start_run(run_id=run_id, run_name=options.size) as run, curve.open("a") as lines:
        run_file.write_text(run.info.run_id)
        if run_id is None:
            mlflow.log_params({**asdict(plan), "device": device, "weights": dict(options.weight)})
        for progress in training.steps(compile_model=options.compile):
            lines.write(json.dumps({"step": progress.step, "loss": progress.loss}) + "\n")
            if progress.step % options.report_every == 0 or progress.step == plan.steps:
                _report(progress, training, plan)
            if progress.step % options.checkpoint_every == 0 or progress.step == plan.steps:
                lines.flush()
                training.checkpoint(checkpoint)
            if progress.step == plan.decay_start:
                training.checkpoint(plateau)
        final = training.bits_per_byte(windows_per_source=None)
        mlflow.log_metric("final_bits_per_byte", final)
    facts = _facts(training, final, device, dict(options.weight), [source.name for source in sources])
    training.export(options.output or folder / "model", facts)
    print(f"{options.size}: {final:.4f} bits per byte held out", flush=True)


def _resume(training: Pretraining, checkpoint: Path, plateau: Path) -> None:
    """Go on from the last checkpoint; a run that was ended by a shorter plan, from the end of its plateau."""
    if not checkpoint.exists():
        return
    try:
        training.resume(checkpoint)
    except ValueError:
        if not plateau.exists():
            raise
        training.resume(plateau)
    print(f"resumed at step {training.step} of {training.plan.steps}", flush=True)


def _run_to_continue(run_file: Path) -> str | None:
    """The MLflow run of the steps so far, if this store has it."""
    if not run_file.exists():
        return None
    try:
        return str(mlflow.get_run(run_file.read_text()).info.run_id)
    except MlflowException:
        return None


def _report(progress: Progress, training: Pretraining, plan: Plan) -> None:
    bits = training.bits_per_byte()
    mlflow.log_metrics({"loss": progress.loss, "lr": progress.lr, "bits_per_byte": bits}, step=progress.step)
    rate = progress.step * plan.batch * plan.length / training.seconds
    print(
        f"step {progress.step}/{plan.steps}  loss {progress.loss:.4f}  held out {bits:.4f} bits/byte  "
        f"{rate:,.0f} tokens/s",
        flush=True,
    )


def _cut(curve: Path, step: int) -> None:
    """Drop the lines behind a checkpoint: they will be written again."""
    if curve.exists():
        curve.write_text("".join(f"{line}\n" for line in curve.read_text().splitlines()[:step]))


def _facts(
    training: Pretraining, bits: float, device: str, weights: dict[str, float], sources: list[str]
) -> dict[str, Any]:
    plan = training.plan
    hardware = (
        torch.cuda.get_device_name() if device == "cuda" else f"{processor_name()}, {torch.get_num_threads()} threads"
    )
    return {
        **asdict(plan),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "steps": training.step,
        "peak_lr": SIZES[plan.size].peak_lr,
        "held_out_bits_per_byte": round(bits, 4),
        "training_seconds": round(training.seconds),
        "hardware": hardware,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sources": sources,
        "weights": weights,
    }


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ftmatrix.pretraining", description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of .txt and .txt.xz files, a passage a line")
    parser.add_argument("--tokens", type=int, required=True, help="how many tokens to train on")
    parser.add_argument(
        "--weight", type=_weight, action="append", default=[], metavar="FILE=X", help="scale one file's share"
    )
    parser.add_argument("--work", type=Path, default=Path("pretraining"), help="tokenizer, token cache and checkpoints")
    parser.add_argument("--output", type=Path, help="where the finished model goes (default: WORK/SIZE/model)")
    parser.add_argument("--length", type=int, default=256, help="window in tokens")
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--bf16", action="store_true", help="bf16 matrix products (GPUs, CPUs with bf16 units)")
    parser.add_argument("--compile", action="store_true", help="compile the step (needs a C++ compiler on a CPU)")
    parser.add_argument("--report-every", type=int, default=200, help="steps between held-out figures")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps between checkpoints")
    return parser


if __name__ == "__main__":
    main()

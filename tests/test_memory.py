"""The shadow run, held against the bytes that the real training loop's tensors hold."""

from pathlib import Path
from typing import Any

import pytest

from ftmatrix.checkpoints import Checkpoint
from ftmatrix.data import Message
from ftmatrix.forecasting import largest_batch
from ftmatrix.framing import Framer
from ftmatrix.hardware import Accelerator, Precision
from ftmatrix.memory.shadow import BatchShape, Shadow, shadow_step
from ftmatrix.memory.tracker import StorageTracker
from ftmatrix.methods import FullFineTuning, Lora, Method, Quantization
from ftmatrix.models import load_model
from ftmatrix.settings import Training
from ftmatrix.training import Trainer

METHODS: dict[str, Method] = {
    "full": FullFineTuning(name="full"),
    "lora": Lora(name="lora"),
    "dora": Lora(name="dora", dora=True),
    "qlora": Lora(name="qlora", quantize=Quantization.nf4),
}


def real_step(
    folder: Path,
    method: Method,
    framer: Framer,
    messages: Any,
    settings: Training,
    cpu: Accelerator,
    precision: Precision,
) -> tuple[Shadow, BatchShape]:
    """What the real loop's second step holds at most, by the same count on real tensors."""
    base = load_model(
        Checkpoint(folder, "", 0),
        dtype=method.weights_dtype(precision),
        device="cpu",
        quantization=method.quantization(precision),
    )
    model = method.adapt(base, precision)
    examples = framer.frame(messages)
    trainer = Trainer(
        model, examples, settings=settings, lr=1e-3, seed=0, pad_id=framer.pad_id, accelerator=cpu, precision=precision
    )
    steps = trainer.steps()
    next(steps)
    tracker = StorageTracker()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    for tensor in (*model.parameters(), *model.buffers(), *states):
        tracker.count(tensor)
    with tracker:
        next(steps)
    assert trainer.memory is not None
    shape = largest_batch([(len(example), len(example.label)) for example in examples], settings, seed=0)
    return Shadow(trainer.memory, tracker.peak_bytes), shape


@pytest.mark.parametrize("settings", [
    Training(epochs=1), Training(epochs=1, micro_batch_size=4), Training(epochs=1, gradient_checkpointing=True),
], ids=["whole", "micro-batches", "checkpointing"])  # fmt: skip
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("gemma", Precision.fp32), ("gemma", Precision.mixed), ("gemma", Precision.bf16), ("llama", Precision.fp32)],
)
def test_the_shadow_holds_what_the_real_step_holds(
    architecture: str,
    precision: Precision,
    name: str,
    settings: Training,
    model_folders: dict[str, Path],
    framer: Framer,
    messages: tuple[Message, ...],
    cpu: Accelerator,
) -> None:
    folder, method = model_folders[architecture], METHODS[name]
    alike = [max(messages, key=lambda message: len(message.text))] * 32  # every batch is the largest
    real, shape = real_step(folder, method, framer, alike, settings, cpu, precision)
    shadow = shadow_step(
        Checkpoint(folder, "", 0),
        method,
        precision=precision,
        shape=shape,
        accumulates=settings.micro_batch_size is not None,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    assert shadow.parts.gradient_bytes == real.parts.gradient_bytes
    assert shadow.parts.optimizer_bytes == real.parts.optimizer_bytes
    assert shadow.parts.weight_bytes == pytest.approx(real.parts.weight_bytes, rel=0.02)
    assert shadow.peak_bytes == pytest.approx(real.peak_bytes, rel=0.03)

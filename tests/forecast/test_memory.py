"""The shadow run, held against the bytes that the real training loop's tensors hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftmatrix.arms import FullFineTuning, Lora, Method, Quantization
from ftmatrix.data import Message, general_text
from ftmatrix.forecast.forecaster import PASSAGES, largest_batch, largest_of
from ftmatrix.forecast.shadow import BatchShape, Work, shadow_run
from ftmatrix.forecast.tracker import StorageTracker
from ftmatrix.lm import Collator, Compute, Evaluating, Evaluator, Framer, Trainer, Training
from ftmatrix.lm.batches import ROW_TOKENS
from ftmatrix.machine import Accelerator, Precision
from ftmatrix.models import Checkpoint, load_model
from ftmatrix.models.source import ARCHITECTURES
from ftmatrix.records import MemoryParts

METHODS: dict[str, Method] = {
    "full": FullFineTuning(name="full"),
    "lora": Lora(name="lora"),
    "dora": Lora(name="dora", dora=True),
    "qlora": Lora(name="qlora", quantize=Quantization.nf4),
}


EVERY_ARCHITECTURE = pytest.mark.parametrize(
    ("architecture", "precision"),
    [("gemma", Precision.fp32), ("gemma", Precision.mixed), ("gemma", Precision.bf16), ("llama", Precision.fp32)],
)
SMALL = BatchShape(1, 8, 2)


def real_model(folder: Path, method: Method, precision: Precision) -> Any:
    base = load_model(
        Checkpoint(folder, "", 0),
        dtype=method.weights_dtype(precision),
        device="cpu",
        quantization=method.quantization(precision),
    )
    return method.adapt(base, precision)


def real_step(
    folder: Path,
    method: Method,
    framer: Framer,
    messages: Any,
    settings: Training,
    cpu: Accelerator,
    precision: Precision,
) -> tuple[MemoryParts, int, BatchShape]:
    """What the real loop's second step holds at most, by the same count on real tensors."""
    model = real_model(folder, method, precision)
    examples = framer.frame(messages)
    trainer = Trainer(
        model, examples, Compute(Collator(framer.pad_id), cpu, precision), settings=settings, lr=1e-3, seed=0
    )
    steps = trainer.steps()
    next(steps)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tracker = StorageTracker([*model.parameters(), *model.buffers(), *states])
    with tracker:
        next(steps)
    assert trainer.memory is not None
    shape = largest_batch([(len(example), len(example.label)) for example in examples], settings, 0, ROW_TOKENS)
    return trainer.memory, tracker.peak_bytes, shape


@pytest.mark.parametrize("settings", [
    Training(epochs=1), Training(epochs=1, micro_batch_size=4), Training(epochs=1, gradient_checkpointing=True),
], ids=["whole", "micro-batches", "checkpointing"])  # fmt: skip
@pytest.mark.parametrize("name", METHODS)
@EVERY_ARCHITECTURE
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
    parts, peak, shape = real_step(folder, method, framer, alike, settings, cpu, precision)
    work = Work(
        trained=shape,
        answered=SMALL,
        scored=(),
        accumulates=settings.micro_batch_size is not None,
        one_gradient=True,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    shadow = shadow_run(Checkpoint(folder, "", 0), method, precision, work)
    assert shadow.parts.gradient_bytes == parts.gradient_bytes
    assert shadow.parts.optimizer_bytes == parts.optimizer_bytes
    assert shadow.parts.weight_bytes == pytest.approx(parts.weight_bytes, rel=0.02)
    assert shadow.peak_bytes == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize("name", METHODS)
@EVERY_ARCHITECTURE
def test_the_shadow_holds_what_the_real_evaluation_holds(
    architecture: str,
    precision: Precision,
    name: str,
    model_folders: dict[str, Path],
    framer: Framer,
    messages: tuple[Message, ...],
    cpu: Accelerator,
) -> None:
    model = real_model(model_folders[architecture], METHODS[name], precision)
    examples = framer.frame(messages)
    settings = Evaluating(batch_size=len(examples))
    evaluator = Evaluator(model, framer, Compute(Collator(framer.pad_id), cpu, precision), settings=settings)
    lengths = [(len(example), len(example.label)) for example in examples]
    packed, one_a_row = (largest_of([lengths], row_tokens) for row_tokens in (ROW_TOKENS, None))
    parts: list[tuple[Callable[[], object], BatchShape, BatchShape]] = [
        (lambda: evaluator.gold_pass(examples), SMALL, packed),
        (lambda: evaluator.text_nll(general_text()), SMALL, PASSAGES),
        (lambda: evaluator.choose([example.prompt for example in examples]), one_a_row, SMALL),
    ]
    tracker = StorageTracker([*model.parameters(), *model.buffers()])
    for evaluate, answered, scored in parts:
        tracker.lap()
        with tracker:
            evaluate()
        work = Work(trained=SMALL, answered=answered, scored=(scored,))
        shadow = shadow_run(Checkpoint(model_folders[architecture], "", 0), METHODS[name], precision, work)
        assert shadow.evaluate_bytes == pytest.approx(tracker.peak_bytes, rel=0.1 if evaluate is parts[-1][0] else 0.01)


@pytest.mark.parametrize(
    ("name", "settings"), [("full", {"accumulates": True}), ("qlora", {"gradient_checkpointing": True})], ids=str
)
def test_few_layers_tell_of_all(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    smollm = Checkpoint(ARCHITECTURES / "HuggingFaceTB--SmolLM2-135M", "", 0)
    work = Work(BatchShape(16, 40, 64), BatchShape(64, 40, 256), (BatchShape(14, 128, 256), PASSAGES), **settings)
    drawn_out = shadow_run(smollm, METHODS[name], Precision.fp32, work)
    monkeypatch.setattr("ftmatrix.forecast.shadow.FEW_LAYERS", (99, 100))
    whole = shadow_run(smollm, METHODS[name], Precision.fp32, work)
    assert whole.parts == drawn_out.parts
    assert drawn_out.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.001)
    assert drawn_out.evaluate_bytes == pytest.approx(whole.evaluate_bytes, rel=0.001)

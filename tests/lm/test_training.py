"""The training loop: gradients, order, rates, and its end on a number that isn't finite."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftmatrix.arms import Lora
from ftmatrix.data import Message
from ftmatrix.errors import ConfigError
from ftmatrix.lm import Collator, Compute, Framer, Trainer, Training, weights_are_finite
from ftmatrix.lm.settings import Schedule
from ftmatrix.machine import Accelerator, Precision
from ftmatrix.records import Step


def trainer(model: Any, framer: Framer, messages: tuple[Message, ...], cpu: Accelerator, **options: Any) -> Trainer:
    return Trainer(
        model,
        framer.frame(messages),
        Compute(Collator(framer.pad_id), cpu, Precision.fp32),
        settings=options.pop("settings", Training(epochs=1)),
        lr=options.pop("lr", 1e-3),
        seed=options.pop("seed", 0),
    )


def fresh(model_folders: dict[str, Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)


def losses(steps: list[Step]) -> list[float]:
    return [step.loss for step in steps]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    first, again, other = (
        losses(list(trainer(fresh(model_folders), framer, messages, cpu, seed=seed).steps())) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_micro_batches_sum_to_the_batch(
    micro: int, model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    whole = list(trainer(fresh(model_folders), framer, messages[:64], cpu).steps())
    settings = Training(epochs=1, micro_batch_size=micro)
    parts = list(trainer(fresh(model_folders), framer, messages[:64], cpu, settings=settings).steps())
    for a, b in zip(whole, parts, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
        assert (a.tokens, a.label_tokens) == (b.tokens, b.label_tokens)


def test_checkpointed_gradients_are_the_same(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    plain = list(trainer(fresh(model_folders), framer, messages[:32], cpu).steps())
    settings = Training(epochs=1, gradient_checkpointing=True)
    again = list(trainer(fresh(model_folders), framer, messages[:32], cpu, settings=settings).steps())
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("settings", [Training(epochs=1), Training(epochs=1, micro_batch_size=4)])
def test_a_rehearsal_changes_nothing(
    settings: Training,
    model_folders: dict[str, Path],
    framer: Framer,
    messages: tuple[Message, ...],
    cpu: Accelerator,
) -> None:
    found = []
    for rehearses in (False, True):
        torch.manual_seed(0)
        model = Lora(name="lora", dropout=0.3).adapt(fresh(model_folders), Precision.fp32)
        training = trainer(model, framer, messages[:48], cpu, settings=settings)
        if rehearses:
            training.rehearse()
        found.append(losses(list(training.steps())))
    assert found[0] == found[1]


def test_a_rehearsal_goes_through_the_largest_passes(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    training = trainer(fresh(model_folders), framer, messages, cpu, settings=Training(epochs=2))
    seen = []
    forward = training._loss
    training._loss = lambda batch: (seen.append(batch), forward(batch))[1]  # type: ignore[method-assign,func-returns-value]
    training.rehearse()
    rehearsed, seen = seen, []
    list(training.steps())
    for size in (lambda batch: batch.inputs["input_ids"].numel(), lambda batch: len(batch.targets)):
        assert max(map(size, rehearsed)) == max(map(size, seen))
    assert len(rehearsed) <= 3
    assert all(parameter.grad is None for parameter in training.trained)


def test_training_learns(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    steps = list(trainer(fresh(model_folders), framer, messages, cpu, lr=3e-3, settings=Training(epochs=6)).steps())
    assert len(steps) == Training(epochs=6).steps(len(messages))
    assert steps[-1].loss < 0.3 * steps[0].loss


@pytest.mark.parametrize("planted", ["loss", "gradient"])
def test_a_number_that_isnt_finite_ends_training_and_isnt_applied(
    planted: str, model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    model = fresh(model_folders)
    if planted == "loss":
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    else:
        model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    steps = list(trainer(model, framer, messages, cpu).steps())
    assert len(steps) == 1
    assert not math.isfinite(steps[0].loss if planted == "loss" else steps[0].grad_norm)
    assert weights_are_finite(model)


def test_rates_rise_and_fall_as_asked() -> None:
    linear = Training(schedule=Schedule.linear, warmup_fraction=0.1)
    rates = [linear.lr_at(step, 100, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    constant = Training(schedule=Schedule.constant, warmup_fraction=0.0)
    assert {constant.lr_at(step, 100, 1.0) for step in range(100)} == {1.0}
    cosine = Training(schedule=Schedule.cosine, warmup_fraction=0.0)
    assert cosine.lr_at(50, 100, 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "training.epochs=0: must be at least 1"),
        ({"batch_size": 10, "micro_batch_size": 4}, "must divide training.batch_size=10"),
        ({"warmup_fraction": 1.0}, r"must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "must be 0 or above"),
        ({"max_grad_norm": 0.0}, "or null for no clipping"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Training(**settings).check()


def test_what_training_holds_is_counted_where_it_lives(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    model = fresh(model_folders)
    model.model.embed_tokens.weight.requires_grad_(False)
    training = trainer(model, framer, messages[:16], cpu)
    list(training.steps())
    every = 4 * sum(weight.numel() for weight in model.parameters())
    trained = every - 4 * model.model.embed_tokens.weight.numel()
    assert training.memory is not None
    assert (training.memory.weight_bytes, training.memory.gradient_bytes) == (every, trained)
    counters = 4 * len(training.trained)  # AdamW's own step count, one a tensor
    assert training.memory.optimizer_bytes == 2 * trained + counters

"""The verdict of hand-made runs."""

import dataclasses
import math
from typing import Any

import numpy
import pytest

from ftmatrix.cell import score
from ftmatrix.cell.stability import LEAST_HISTORY_STEPS, assess, find_spikes
from ftmatrix.records import Evaluation, Prediction, Stability, Step, Verdict


def run(losses: Any, norms: Any = None) -> list[Step]:
    norms = numpy.ones(len(losses)) if norms is None else norms
    return [Step(i, 1e-3, float(a), float(b), 100, 20, 0.1) for i, (a, b) in enumerate(zip(losses, norms, strict=True))]


def healthy(steps: int = 300, seed: int = 0) -> Any:
    random = numpy.random.default_rng(seed)
    return (0.3 + 3 * numpy.exp(-numpy.arange(steps) / 40)) * numpy.exp(random.normal(0, 0.15, steps))


LABELS = tuple(f"intent_{index}" for index in range(10))


def scores(accuracy: float, *, nll: float = 0.4, messages: int = 300, answer: str | None = "nonsense") -> Evaluation:
    """Validation of so many messages, ten intents alike; a wrong answer is `answer`, or (None) the next intent."""
    right = round(accuracy * messages)
    predictions = []
    for index in range(messages):
        label = LABELS[index % 10]
        said = label if index < right else answer or LABELS[(index + 1) % 10]
        predictions.append(Prediction("a message", label, said, said, said in LABELS, nll))
    return score("validation", predictions, nll=nll, labels=LABELS, common=frozenset(LABELS), pair=None)


def verdict(steps: list[Step], *, nll: float = 0.4, accuracy: float = 0.8, **changed: Any) -> Stability:
    facts: dict[str, Any] = {
        "warmup_steps": 10,
        "batch_size": 10,  # so a label has two tokens
        "nll_initial": 3.0,
        "validation": scores(accuracy, nll=nll),
        "weights_finite": True,
    }
    return assess(steps, **(facts | changed))


def test_a_healthy_run_is_stable() -> None:
    found = verdict(run(healthy()))
    assert (found.verdict, found.step, found.spike_score) == (Verdict.STABLE, None, 0.0)


@pytest.mark.parametrize("series", ["loss", "grad_norm"])
def test_a_spike_is_found_with_its_step_and_value(series: str) -> None:
    losses, norms = healthy(), healthy(seed=1)
    (losses if series == "loss" else norms)[200] *= 30
    found = verdict(run(losses, norms))
    assert (found.verdict, found.step, found.series) == (Verdict.SPIKY, 200, series)
    assert found.value == pytest.approx((losses if series == "loss" else norms)[200])
    assert found.spike_score == pytest.approx(1 / (300 - 10 - LEAST_HISTORY_STEPS))


def test_two_spikes_name_the_first_and_score_twice() -> None:
    losses = healthy()
    losses[[150, 250]] *= 30
    found = verdict(run(losses))
    assert found.step == 150
    assert found.spike_score == pytest.approx(2 / (300 - 10 - LEAST_HISTORY_STEPS))


def test_a_smaller_last_batch_makes_no_spike_and_hides_none() -> None:
    """Five messages in the place of sixteen have a norm up to 1.8 times the others', and a loss that varies more."""
    draw = numpy.random.default_rng(0)
    steps = run(numpy.exp(draw.normal(0, 0.1, 132)), 8.0 * numpy.exp(draw.normal(0, 0.1, 132)))
    small = [
        dataclasses.replace(step, label_tokens=6, grad_norm=step.grad_norm * 1.8, loss=step.loss * 1.8)
        if step.index % 44 == 43
        else step
        for step in steps
    ]
    assert find_spikes(steps, warmup_steps=7)[0] == []
    assert find_spikes(small, warmup_steps=7)[0] == []
    whole = [dataclasses.replace(step, label_tokens=20) for step in small]
    assert {spike.step for spike in find_spikes(whole, warmup_steps=7)[0]} <= {43, 87, 131}
    assert find_spikes(whole, warmup_steps=7)[0]
    broken = [*small[:-1], dataclasses.replace(small[-1], grad_norm=100.0)]
    (spike,) = find_spikes(broken, warmup_steps=7)[0]
    assert (spike.step, spike.series) == (131, "grad_norm")


def test_a_spike_during_warm_up_isnt_judged() -> None:
    losses = healthy()
    losses[5] *= 100
    assert verdict(run(losses)).verdict is Verdict.STABLE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 299])
def test_a_number_that_isnt_finite_is_divergence_wherever_it_stands(value: float, at: int) -> None:
    losses = healthy()
    losses[at] = value
    found = verdict(run(losses))
    assert (found.verdict, found.step, found.series) == (Verdict.DIVERGED, at, "loss")


def test_slow_divergence_shows_at_the_end() -> None:
    found = verdict(run(healthy()), nll=3.0)
    assert (found.verdict, found.step, found.series, found.value) == (Verdict.DIVERGED, None, "val_nll", 3.0)
    assert verdict(run(healthy()), nll=math.nan).verdict is Verdict.DIVERGED


def test_weights_that_arent_finite_are_divergence() -> None:
    assert verdict(run(healthy()), weights_finite=False).series == "weights"


def slow(steps: int = 300, seed: int = 0, *, noise: float = 0.15) -> Any:
    """A loss that has come down a little by the end."""
    random = numpy.random.default_rng(seed)
    return 3 * numpy.exp(-numpy.arange(steps) / steps / 2) * numpy.exp(random.normal(0, noise, steps))


@pytest.mark.parametrize("steps", [3, 12, 60, 300])
def test_too_low_a_rate_has_not_learned(steps: int) -> None:
    found = verdict(run(slow(steps)), accuracy=0.1, nll=2.0)
    assert (found.verdict, found.step, found.series, found.value) == (Verdict.NOT_LEARNED, None, "accuracy", 0.1)
    assert not found.verdict.is_unstable


def test_a_loss_that_rose_again_is_collapse() -> None:
    losses = healthy()
    losses[200:] = 2.5
    found = verdict(run(losses), accuracy=0.1, nll=2.5)
    assert (found.verdict, found.series) == (Verdict.COLLAPSED, "loss")
    assert found.step is not None
    assert 200 <= found.step < 260
    assert found.verdict.is_unstable


def test_a_loss_that_rises_from_the_first_step_is_collapse() -> None:
    losses = slow()
    losses[:40] = 6.0
    assert verdict(run(losses), accuracy=0.1, nll=2.0).verdict is Verdict.COLLAPSED


def test_one_answer_for_all_at_the_loss_of_label_frequencies_is_collapse() -> None:
    known = math.log(10) / 2  # ten intents alike, two tokens a label
    losses = numpy.concatenate([slow(100), numpy.full(200, known)])
    one = scores(0.0, nll=known, answer=LABELS[0])
    assert verdict(run(losses), validation=one).series == "one_answer"
    many = scores(0.1, nll=known, answer=None)
    assert verdict(run(losses), validation=many).verdict is Verdict.NOT_LEARNED
    late = numpy.concatenate([slow(260), numpy.full(40, known)])  # it came down there only now, and may well go on
    assert verdict(run(late), validation=one).verdict is Verdict.NOT_LEARNED


@pytest.mark.parametrize(
    ("accuracy", "messages", "expected"),
    [
        (0.5, 4, Verdict.UNDECIDED),
        (0.0, 4, Verdict.UNDECIDED),
        (0.25, 12, Verdict.UNDECIDED),
        (0.3, 40, Verdict.STABLE),
        (0.0, 40, Verdict.NOT_LEARNED),
        (0.8, 10, Verdict.STABLE),
    ],
)
def test_few_messages_carry_no_verdict_that_they_cannot_tell(accuracy: float, messages: int, expected: Verdict) -> None:
    losses = healthy() if accuracy else slow()
    assert verdict(run(losses), validation=scores(accuracy, messages=messages)).verdict is expected


def test_a_spike_is_seen_whatever_the_messages_say() -> None:
    losses = healthy()
    losses[150] *= 30
    assert verdict(run(losses), validation=scores(0.5, messages=4)).verdict is Verdict.SPIKY


def test_a_run_shorter_than_the_window_has_no_score() -> None:
    found = verdict(run(healthy(LEAST_HISTORY_STEPS)))
    assert (found.verdict, found.spike_score) == (Verdict.STABLE, None)


def test_a_number_that_isnt_finite_never_enters_a_window() -> None:
    losses = healthy()
    losses[100:140] = math.nan
    spikes, judged = find_spikes(run(losses), warmup_steps=10)
    assert not spikes
    assert judged > 0


def test_a_jump_out_of_a_flat_curve_is_a_spike() -> None:
    losses = numpy.full(200, 0.5)
    assert verdict(run(losses)).verdict is Verdict.STABLE
    losses[120] = 0.6
    assert verdict(run(losses)).step == 120


def test_losses_that_round_to_nothing_are_no_spikes() -> None:
    losses = healthy(300)
    losses[150:] = 0.0
    losses[250] = 1e-7
    assert verdict(run(losses)).verdict is Verdict.STABLE
    losses[250] = 0.1
    assert verdict(run(losses)).step == 250


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_start_that_isnt_a_number_is_divergence(broken: float) -> None:
    found = verdict(run(healthy()), nll_initial=broken)
    assert (found.verdict, found.series) == (Verdict.DIVERGED, "val_nll_initial")


def test_the_end_of_a_run_is_judged_before_its_spikes() -> None:
    losses = healthy()
    losses[150] *= 30
    assert verdict(run(losses)).verdict is Verdict.SPIKY
    losses[200:] = 2.5
    assert verdict(run(losses), accuracy=0.1).verdict is Verdict.COLLAPSED
    assert verdict(run(losses), accuracy=0.1, nll=3.5).verdict is Verdict.DIVERGED


@pytest.mark.parametrize("steps", [60, 300])
def test_at_most_one_healthy_run_in_a_hundred_is_flagged(steps: int) -> None:
    flagged = sum(
        verdict(simulated(steps, seed), warmup_steps=round(0.05 * steps)).verdict is not Verdict.STABLE
        for seed in range(1000)
    )
    assert flagged <= 10


def plant_spike(losses: Any, norms: Any, at: int) -> float:
    losses[at] *= numpy.exp(15 * NOISE)
    return 0.4


def plant_gradient_burst(losses: Any, norms: Any, at: int) -> float:
    norms[at : at + 5] *= numpy.exp(12 * NOISE)
    return 0.4


def plant_overflow(losses: Any, norms: Any, at: int) -> float:
    norms[at] = math.inf
    return 0.4


def plant_slow_divergence(losses: Any, norms: Any, at: int) -> float:
    losses[at:] *= numpy.exp(numpy.linspace(0, math.log(8.0 / losses[-1]), len(losses) - at))
    return float(numpy.median(losses[-5:]))  # the validation loss is where training ended, the spikes aside


@pytest.mark.parametrize("plant", [plant_spike, plant_gradient_burst, plant_overflow, plant_slow_divergence])
def test_planted_instability_is_caught(plant: Any) -> None:
    random = numpy.random.default_rng(0)
    caught = 0
    for seed in range(200):
        losses, norms = series(300, seed)
        nll = plant(losses, norms, int(random.integers(60, 250)))
        caught += verdict(run(losses, norms), nll=nll).verdict is not Verdict.STABLE
    assert caught >= 190


NOISE = 0.35
"""Standard deviation of a healthy log-loss about its trailing median; pocket models have 0.13 to 0.7."""


def series(steps: int, seed: int) -> tuple[Any, Any]:
    random = numpy.random.default_rng(seed)
    decay = numpy.exp(-numpy.arange(steps) / (steps / 6))
    return tuple(level * numpy.exp(NOISE * random.normal(size=steps)) for level in (0.02 + 3 * decay, 0.3 + 2 * decay))  # type: ignore[return-value]


def simulated(steps: int, seed: int) -> list[Step]:
    return run(*series(steps, seed))

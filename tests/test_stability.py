"""The verdict of hand-made runs."""

import math
from typing import Any

import numpy
import pytest

from ftmatrix.records import Stability, Step, Verdict
from ftmatrix.stability import LEAST_HISTORY_STEPS, assess, find_spikes


def run(losses: Any, norms: Any = None) -> list[Step]:
    norms = numpy.ones(len(losses)) if norms is None else norms
    return [Step(i, 1e-3, float(a), float(b), 100, 20, 0.1) for i, (a, b) in enumerate(zip(losses, norms, strict=True))]


def healthy(steps: int = 300, seed: int = 0) -> Any:
    random = numpy.random.default_rng(seed)
    return (0.3 + 3 * numpy.exp(-numpy.arange(steps) / 40)) * numpy.exp(random.normal(0, 0.15, steps))


def verdict(steps: list[Step], **changed: Any) -> Stability:
    facts: dict[str, Any] = {
        "warmup_steps": 10,
        "nll_initial": 3.0,
        "nll": 0.4,
        "weights_finite": True,
        "accuracy": 0.8,
        "majority_share": 0.1,
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


def test_answering_one_class_is_collapse() -> None:
    assert verdict(run(healthy()), accuracy=0.1).verdict is Verdict.COLLAPSED


def test_a_run_shorter_than_the_window_has_no_score() -> None:
    found = verdict(run(healthy(LEAST_HISTORY_STEPS)))
    assert (found.verdict, found.spike_score) == (Verdict.STABLE, None)


def test_a_number_that_isnt_finite_never_enters_a_window() -> None:
    losses = healthy()
    losses[100:140] = math.nan
    spikes, judged = find_spikes(run(losses), warmup_steps=10)
    assert not spikes
    assert judged > 0

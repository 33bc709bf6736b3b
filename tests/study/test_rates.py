"""Best rate, stable window, sensitivity and ratios of made-up arms."""

import math

import numpy
import pytest
from rows import arm, failed, row

from ftmatrix.records import Row, Verdict
from ftmatrix.study import (
    Curve,
    Sample,
    around_best,
    best_rate,
    curves,
    degraded,
    paired_samples,
    rate_ratio,
    sensitivity,
    shared_rates,
    unfair_differences,
    window,
)
from ftmatrix.study.rates import width_difference

FULL = {
    1e-5: (0.5, "stable"),
    1e-4: (0.8, "stable"),
    1e-3: (0.79, "stable"),
    1e-2: (0.4, "diverged"),
    1e-1: (0.1, "diverged"),
}
LORA = {
    1e-5: (0.2, "stable"),
    1e-4: (0.5, "stable"),
    1e-3: (0.8, "stable"),
    1e-2: (0.78, "stable"),
    1e-1: (0.3, "collapsed"),
}


def only(rows: list[Row]) -> Curve:
    (curve,) = curves(rows)
    return curve


def test_the_best_rate_is_by_accuracy_and_ties_by_loss() -> None:
    assert best_rate(only(arm("full", FULL))) == 1e-4
    tied = [row("full", lr, seed, 0.8, val_nll=nll) for lr, nll in ((1e-4, 0.6), (1e-3, 0.5)) for seed in range(3)]
    assert best_rate(only(tied)) == 1e-3
    unknown = [row("full", lr, 0, 0.8, val_nll=nll) for lr, nll in ((1e-4, math.nan), (1e-3, 0.5))]
    assert best_rate(only(unknown)) == 1e-3


def test_a_broken_run_makes_no_tie_break_better() -> None:
    rows = [row("full", 1e-4, seed, val_nll=0.5) for seed in range(5)]
    rows += [row("full", 1e-3, seed, val_nll=0.4 if seed else math.nan) for seed in range(5)]
    assert best_rate(curves(rows)[0]) == 1e-4


def test_a_rate_is_degraded_by_share_or_by_three_points_for_sure() -> None:
    sample = Sample.of(only(arm("full", {1e-4: (0.80, "stable"), 1e-3: (0.76, "stable"), 1e-2: (0.71, "stable")})))
    assert degraded(sample) == [False, True, True]
    wide = [
        row("full", lr, seed, mean + 10 * off)
        for lr, mean in ((1e-4, 0.80), (1e-3, 0.76))
        for seed, off in enumerate((-0.006, 0.0, 0.006))
    ]
    assert degraded(Sample.of(only(wide))) == [False, False]


def test_the_window_is_what_lies_around_the_best_rate() -> None:
    found = window(Sample.of(only(arm("full", FULL))))
    assert found is not None
    assert (found.low, found.high, found.bracketed) == (1e-4, 1e-3, True)
    assert found.decades == pytest.approx(1)


def test_an_edge_that_the_grid_doesnt_reach_isnt_bracketed() -> None:
    inner = {lr: level for lr, level in FULL.items() if 1e-4 <= lr <= 1e-3}
    found = window(Sample.of(only(arm("full", inner))))
    assert found is not None
    assert (found.low_bracketed, found.high_bracketed) == (False, False)


def test_one_unstable_run_in_five_is_borne_and_two_are_not() -> None:
    for unstable, high in ((1, 1e-3), (2, 1e-4)):
        rows = arm("full", {1e-5: (0.4, "stable"), 1e-4: (0.8, "stable"), 1e-2: (0.2, "diverged")})
        rows += [row("full", 1e-3, seed, 0.8, "spiky" if seed < unstable else "stable") for seed in range(5)]
        found = window(Sample.of(only(rows)))
        assert found is not None
        assert found.high == high


def test_there_is_no_window_around_an_unstable_best_rate() -> None:
    assert window(Sample.of(only(arm("full", {1e-4: (0.8, "spiky"), 1e-3: (0.5, "stable")})))) is None


def test_a_run_that_broke_down_stays_in_every_count() -> None:
    rows = [row("full", 1e-4, seed) for seed in range(4)]
    rows.append(row("full", 1e-4, 4, 0.0, "diverged", val_nll=math.nan))
    curve = only(rows)
    (point,) = curve.points
    assert (len(point.runs), point.unstable, point.verdicts[Verdict.DIVERGED]) == (5, 1, 1)
    assert point.mean("accuracy").n == 5
    assert point.mean("accuracy").estimate == pytest.approx(0.64)
    sample = Sample.of(curve)
    assert sample.nll.shape == (1, 5)
    everywhere = sensitivity(Sample.of(only(rows + [row("full", 1e-3, seed) for seed in range(5)])))
    assert everywhere.nll.n == 5
    assert everywhere.nll.estimate == pytest.approx(((3.0 + 0.2) / 2 - 0.2) / 5)  # untrained at one rate, in one seed


def test_a_failed_cell_is_counted_apart() -> None:
    curve = only([row("full", 1e-4, 0), failed("full", 1e-4, 1), failed("full", 1e-3, 0)])
    assert [(len(point.runs), len(point.failed)) for point in curve.points] == [(1, 1), (0, 1)]
    assert curve.rates == (1e-4,)


def test_sensitivity_is_the_mean_excess_over_the_best_rate() -> None:
    losses = {1e-4: 0.5, 1e-3: 1.5, 1e-2: 9.0}
    rows = [row("full", lr, seed, val_nll=nll) for lr, nll in losses.items() for seed in range(3)]
    found = sensitivity(Sample.of(only(rows)))
    assert found.nll.estimate == pytest.approx((0.0 + 1.0 + 2.5) / 3)  # 9 nats count as the untrained 3


def test_sensitivity_around_the_best_rate_takes_one_decade_either_side() -> None:
    assert around_best(Sample.of(only(arm("full", FULL)))).rates.tolist() == [1e-5, 1e-4, 1e-3]


def test_the_rate_ratio_counts_the_grids_spacing() -> None:
    lora, full = (only(arm(name, levels)) for name, levels in (("lora", LORA), ("full", FULL)))
    found = rate_ratio(*paired_samples(lora, full))
    assert found.estimate == pytest.approx(10)
    assert found.low is not None
    assert found.high is not None
    assert 1 < found.low < 10 < found.high < 100


def test_windows_are_compared_in_decades_and_only_when_bracketed() -> None:
    wide = {lr / 10: level for lr, level in LORA.items()} | {1e-3: (0.79, "stable"), 1e-2: (0.1, "diverged")}
    pair = paired_samples(only(arm("lora", wide)), only(arm("full", FULL)))
    found = width_difference(*pair)
    assert found.estimate == pytest.approx(0)
    inner = {lr: level for lr, level in FULL.items() if lr <= 1e-3}
    assert width_difference(*paired_samples(only(arm("lora", inner)), only(arm("full", FULL)))).low is None


def test_seeds_are_paired_by_their_number() -> None:
    first = only(arm("full", FULL))
    second = only([one for one in arm("lora", LORA) if one.seed != 2])
    one, two = paired_samples(first, second)
    assert one.accuracy.shape == two.accuracy.shape == (5, 4)
    assert not numpy.isnan(two.accuracy).any()


def test_arms_that_vary_in_a_setting_are_apart() -> None:
    rows = [row("lora", 1e-4, 0, settings={"method.r": rank, "training.epochs": "3"}) for rank in ("4", "8")]
    rows += [row("full", 1e-4, 0, settings={"training.epochs": epochs}) for epochs in ("1", "3")]
    found = curves(rows)
    assert [(curve.context.title, curve.label) for curve in found] == [
        ("pocket-1m training.epochs=1", "full"),
        ("pocket-1m training.epochs=3", "full"),
        ("pocket-1m training.epochs=3", "lora r=4"),
        ("pocket-1m training.epochs=3", "lora r=8"),
    ]


def test_what_else_differs_between_arms_is_named() -> None:
    facts = {"precision": "fp32", "version.torch": "2.13"}
    rows = [row("full", 1e-4, 0, settings={"training.epochs": "3"}, facts=facts)]
    rows += [
        row("lora", lr, 0, settings={"training.epochs": "5", "method.r": "16"}, facts={"precision": "mixed"})
        for lr in (1e-4, 1e-3)
    ]
    assert unfair_differences(curves(rows)) == [
        "precision: full fp32; lora mixed",
        "training.epochs: full 3; lora 5",
        "rates: full 0.0001; lora 0.0001, 0.001",
    ]
    assert shared_rates(curves(rows)) == [1e-4]


def test_adapters_of_another_shape_are_no_fair_comparison() -> None:
    shape = {"method.r": "4", "model.attention": "sdpa", "method.name": "lora", "method.quantize": "none"}
    other = {"method.r": "64", "model.attention": "eager", "method.name": "qlora", "method.quantize": "nf4"}
    rows = [row("lora", 1e-4, 0, settings=shape), row("qlora", 1e-4, 0, settings=other), row("full", 1e-4, 0)]
    assert unfair_differences(curves(rows)) == [
        "method.r: lora 4; qlora 64",
        "model.attention: lora sdpa; qlora eager",
    ]

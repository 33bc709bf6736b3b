"""Intervals and tests, held against tables, closed forms and simulation."""

import math

import numpy
import pytest
from scipy import stats

from ftmatrix.statistics import (
    Interval,
    equivalence,
    grid_margin,
    holm,
    mcnemar,
    mean_interval,
    more_often,
    seed_bootstrap,
    share_interval,
)


def test_the_mean_has_students_interval() -> None:
    values = [0.81, 0.83, 0.80, 0.84, 0.82]
    found = mean_interval(values)
    expected = stats.t.interval(0.95, 4, loc=numpy.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n == 5


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6], [0.5, 0.6, math.nan], [0.5, math.inf, 0.6]])
def test_too_few_or_unknown_values_have_no_interval(values: list[float]) -> None:
    assert (mean_interval(values).low, mean_interval(values).high) == (None, None)


def test_an_unknown_interval_overlaps_everything() -> None:
    assert Interval(0.0, None, None, 1).overlaps(Interval(9.0, 8.0, 10.0, 5))
    assert not Interval(0.0, -1.0, 1.0, 5).overlaps(Interval(9.0, 8.0, 10.0, 5))


def test_no_failure_in_five_runs_leaves_nearly_half_open() -> None:
    found = share_interval(0, 5)
    assert found.low == 0
    assert found.high == pytest.approx(0.434, abs=0.001)


@pytest.mark.parametrize(("hits", "of", "other", "of_other", "p"), [(3, 3, 0, 3, 0.05), (4, 5, 0, 5, 0.0238)])
def test_few_seeds_decide_little(hits: int, of: int, other: int, of_other: int, p: float) -> None:
    assert more_often(hits, of, other, of_other) == pytest.approx(p, abs=1e-4)


def test_holm_is_the_step_down_procedure() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_equivalence_needs_evidence_and_not_its_absence() -> None:
    close, far = [0.800, 0.801, 0.799, 0.800, 0.802], [0.80, 0.86, 0.74, 0.83, 0.77]
    assert equivalence(close, [value + 0.001 for value in close], 0.01) < 0.05
    assert equivalence(close, far, 0.01) > 0.05
    assert equivalence([0.8, 0.8], [0.8, 0.8], 0.01) == 1.0
    assert equivalence(close, [*close[:-1], math.nan], 0.01) == 1.0


def test_mcnemar_counts_only_what_they_disagree_on() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)


def test_the_bootstrap_draws_seeds_in_order_and_knows_when_it_knows_nothing() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = seed_bootstrap(lambda seeds: float(numpy.mean([values[seed] for seed in seeds])), 5)
    assert found.estimate == 3.0
    assert found.low is not None
    assert found.high is not None
    assert 1.0 < found.low < 3.0 < found.high < 5.0
    assert seed_bootstrap(lambda seeds: 1.0, 2).low is None
    assert seed_bootstrap(lambda seeds: math.nan if 0 in seeds else 1.0, 5).low is None


def test_the_grids_rounding_covers_what_it_hides() -> None:
    """Two true positions, each rounded to a grid: their difference lies within the margin 95 times in 100."""
    random = numpy.random.default_rng(0)
    true = random.uniform(0, 10, (20_000, 2))
    step = 0.6
    hidden = numpy.diff(numpy.round(true / step) * step, axis=1) - numpy.diff(true, axis=1)
    assert (numpy.abs(hidden) <= grid_margin(step, 2)).mean() == pytest.approx(0.95, abs=0.03)


def test_intervals_over_five_seeds_cover_at_their_nominal_rate() -> None:
    random = numpy.random.default_rng(0)
    samples = random.normal(0.8, 0.02, (2000, 5))
    covered = 0
    for sample in samples:
        found = mean_interval(sample.tolist())
        covered += found.low is not None and found.high is not None and found.low <= 0.8 <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)

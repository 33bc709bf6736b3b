"""Intervals and tests for few seeds, by scipy; what a sample can't tell stays unknown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy
from scipy import stats

LEVEL = 0.95
"""Confidence of every interval."""
ALPHA = 1 - LEVEL
"""What a p-value has to stay below."""
RESAMPLES = 2000
"""Of a bootstrap."""
LEAST_SEEDS = 3
"""Fewer seeds give no interval over seeds: two would give one that is wide beyond use, and one gives none."""


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` observations with its 95 % interval; None where `n` is too small for one."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    def overlaps(self, other: "Interval") -> bool:
        """Whether two intervals have a point in common; an unknown interval overlaps everything."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high

    def widened(self, margin: float) -> "Interval":
        """The same with an independent error of half-width `margin` added to either side, in quadrature."""
        if self.low is None or self.high is None:
            return self
        below, above = (math.hypot(end - self.estimate, margin) for end in (self.low, self.high))
        return Interval(self.estimate, self.estimate - below, self.estimate + above, self.n)

    def negated(self) -> "Interval":
        """The interval of the estimate's negative."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Interval(-self.estimate, low, high, self.n)

    def hull(self, other: "Interval") -> "Interval":
        """The same estimate with the wider of two intervals, end by end."""
        lows = [end for end in (self.low, other.low) if end is not None]
        highs = [end for end in (self.high, other.high) if end is not None]
        return Interval(self.estimate, min(lows, default=None), max(highs, default=None), self.n)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval, which holds its level for few observations where a bootstrap doesn't."""
    sample = numpy.asarray(values, dtype=float)
    mean = float(sample.mean()) if len(sample) else math.nan
    if len(sample) < LEAST_SEEDS or not numpy.isfinite(sample).all():
        return Interval(mean, None, None, len(sample))
    spread = float(sample.std(ddof=1)) / math.sqrt(len(sample))
    half = float(stats.t.ppf(1 - ALPHA / 2, len(sample) - 1)) * spread
    return Interval(mean, mean - half, mean + half, len(sample))


def share_interval(hits: float, total: int) -> Interval:
    """A share of `total` with Wilson's interval; `hits` may be a mean over seeds, and is rounded for the ends."""
    if not total:
        return Interval(math.nan, None, None, 0)
    ends = stats.binomtest(round(hits), total).proportion_ci(LEVEL, method="wilson")
    return Interval(hits / total, float(ends.low), float(ends.high), total)


def seed_bootstrap(statistic: Callable[[tuple[int, ...]], float], seeds: int) -> Interval:
    """A statistic of a set of seeds with the percentile interval over sets drawn with replacement.

    `statistic` takes positions of seeds, in order and with repeats. Draws whose statistic is unknown (NaN) make the
    interval unknown when they are more than one in twenty.
    """
    estimate = statistic(tuple(range(seeds)))
    if seeds < LEAST_SEEDS or math.isnan(estimate):
        return Interval(estimate, None, None, seeds)
    known = cache(statistic)
    draws = numpy.sort(numpy.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds)), axis=1)
    values = numpy.array([known(tuple(draw)) for draw in draws.tolist()])
    if numpy.isnan(values).mean() > ALPHA:
        return Interval(estimate, None, None, seeds)
    low, high = numpy.nanpercentile(values, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)], method="closest_observation")
    return Interval(estimate, float(low), float(high), seeds)


def more_often(hits: int, total: int, other_hits: int, other_total: int) -> float:
    """One-sided p of Fisher's exact test that the first share is no larger than the second."""
    table = numpy.array([[hits, total - hits], [other_hits, other_total - other_hits]])
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def equivalence(first: Sequence[float], second: Sequence[float], margin: float) -> float:
    """P of two one-sided Welch t tests (TOST) that the means differ by `margin` or more; 1 where it can't be told."""
    a, b = numpy.asarray(first, dtype=float), numpy.asarray(second, dtype=float)
    if min(len(a), len(b)) < LEAST_SEEDS or not (numpy.isfinite(a).all() and numpy.isfinite(b).all()):
        return 1.0
    if a.std() == 0 and b.std() == 0:
        return 0.0 if abs(a.mean() - b.mean()) < margin else 1.0
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    return float(max(above, below))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p that two methods are right equally often, from the messages that only one got right."""
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the same order.

    References:
        Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def grid_margin(step: float, ends: int) -> float:
    """What a grid of this spacing adds to an interval made of `ends` positions that were rounded to it.

    Each position is off by up to half a step, any amount being as likely: 1.96 standard deviations of the sum.
    """
    return float(stats.norm.ppf(1 - ALPHA / 2)) * step * math.sqrt(ends / 12)

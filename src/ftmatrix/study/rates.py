"""What an arm's curve over the learning rates says: best rate, stable window, sensitivity, ratios between arms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from ftmatrix.statistics import Interval, grid_margin, mean_interval, seed_bootstrap
from ftmatrix.study.comparison import Curve

UNSTABLE_SHARE = 0.2
"""A rate with a larger share of unstable runs is outside the stable window."""
DEGRADED_SHARE = 0.9
"""A rate whose mean accuracy is below this share of the best one's is degraded."""
DEGRADED_POINTS = 0.03
"""So is one this far below it, if the two intervals don't overlap."""
DECADE = 1.0 + 1e-9
"""A decade either side, in log10, whatever rounding does to a rate's logarithm."""

Matrix = NDArray[numpy.float64]


@dataclass(frozen=True)
class Sample:
    """The runs of one arm as (rates, seeds) matrices; NaN where there is no run."""

    rates: Matrix
    accuracy: Matrix
    nll: Matrix
    nll_initial: Matrix
    unusable: Matrix
    diverged: Matrix

    @classmethod
    def of(cls, curve: Curve) -> "Sample":
        """All runs of a curve. Accuracies and losses are those of the validation split: test is read once."""
        return cls(
            rates=numpy.array(curve.rates),
            accuracy=curve.matrix("val_accuracy"),
            nll=curve.matrix("val_nll"),
            nll_initial=curve.matrix("val_nll_initial"),
            unusable=curve.unusable(),
            diverged=curve.diverged(),
        )

    def seeds(self, chosen: Sequence[int]) -> "Sample":
        """The same rates over other seeds, by position; repeats are allowed."""
        columns = numpy.asarray(chosen)
        matrices = (self.accuracy, self.nll, self.nll_initial, self.unusable, self.diverged)
        return Sample(self.rates, *(matrix[:, columns] for matrix in matrices))

    def among(self, rates: Sequence[float]) -> "Sample":
        """The same seeds over some of the rates."""
        lines = [index for index, rate in enumerate(self.rates) if any(math.isclose(rate, one) for one in rates)]
        matrices = (self.accuracy, self.nll, self.nll_initial, self.unusable, self.diverged)
        return Sample(self.rates[lines], *(matrix[lines] for matrix in matrices))

    @property
    def step(self) -> float:
        """The grid's widest gap, in decades; 0 for a single rate."""
        return float(numpy.diff(numpy.log10(self.rates)).max()) if len(self.rates) > 1 else 0.0


@dataclass(frozen=True)
class Window:
    """The contiguous rates around the best one that are neither unstable nor degraded.

    An edge is bracketed where the grid goes on beyond it; else the true edge may lie anywhere further out.
    """

    low: float
    high: float
    low_bracketed: bool
    high_bracketed: bool

    @property
    def decades(self) -> float:
        """Width in powers of ten; a window of one rate is 0 wide."""
        return math.log10(self.high / self.low)

    @property
    def bracketed(self) -> bool:
        """Whether both edges were seen."""
        return self.low_bracketed and self.high_bracketed


@dataclass(frozen=True)
class Sensitivity:
    """LR sensitivity: how much worse than the best rate the others are on average, over some rates.

    References:
        Wortsman et al. 2023, arXiv:2309.14322, section 2.2.
    """

    nll: Interval
    """Nats per label token."""
    error: Interval
    """Error rate."""
    rates: tuple[float, ...]


def best(sample: Sample) -> int:
    """Position of the best rate: highest mean validation accuracy, ties by the lowest mean NLL."""
    broken = numpy.isnan(sample.nll) & ~numpy.isnan(sample.accuracy)  # a run without a number is no better for that
    accuracy, nll = _means(sample.accuracy), _means(numpy.where(broken, math.inf, sample.nll))
    order = range(len(sample.rates))
    return max(order, key=lambda i: (_or(accuracy[i], -math.inf), -_or(nll[i], math.inf)))


def best_rate(curve: Curve) -> float:
    """The best rate of an arm."""
    sample = Sample.of(curve)
    return float(sample.rates[best(sample)])


def degraded(sample: Sample) -> list[bool]:
    """Which rates are clearly worse than the best one: under 90 % of its accuracy, or 3 points under it for sure."""
    intervals = [mean_interval(row[~numpy.isnan(row)].tolist()) for row in sample.accuracy]
    top = intervals[best(sample)]
    return [
        not one.estimate >= DEGRADED_SHARE * top.estimate  # what isn't known is no better
        or (one.estimate <= top.estimate - DEGRADED_POINTS and not one.overlaps(top))
        for one in intervals
    ]


def window(sample: Sample) -> Window | None:
    """The stable window; None where already the best rate has too many runs that broke or learned nothing."""
    shares = _means(sample.unusable)
    inside = [share <= UNSTABLE_SHARE and not bad for share, bad in zip(shares, degraded(sample), strict=True)]
    low = high = best(sample)
    if not inside[low]:
        return None
    while low > 0 and inside[low - 1]:
        low -= 1
    while high + 1 < len(inside) and inside[high + 1]:
        high += 1
    return Window(float(sample.rates[low]), float(sample.rates[high]), low > 0, high + 1 < len(inside))


def sensitivity(sample: Sample) -> Sensitivity:
    """LR sensitivity over all rates of a sample; diverged runs count as untrained ones."""
    lost = (sample.diverged == 1) | numpy.isnan(sample.nll)
    nll = numpy.where(lost, sample.nll_initial, numpy.fmin(sample.nll, sample.nll_initial))
    error = numpy.where(sample.diverged == 1, 1.0, 1 - sample.accuracy)
    return Sensitivity(_excess(nll), _excess(error), tuple(sample.rates.tolist()))


def around_best(sample: Sample) -> Sample:
    """The rates within one decade either side of the best one."""
    logs = numpy.log10(sample.rates)
    return sample.among(sample.rates[numpy.abs(logs - logs[best(sample)]) <= DECADE].tolist())


def rate_ratio(first: Sample, second: Sample) -> Interval:
    """Best rate of the first arm over that of the second, with an interval over seeds and the grid's spacing."""

    def decades(seeds: tuple[int, ...]) -> float:
        one, two = first.seeds(seeds), second.seeds(seeds)
        return math.log10(one.rates[best(one)] / two.rates[best(two)])

    return _powers(_paired(decades, first, second).widened(grid_margin(max(first.step, second.step), ends=2)))


def width_difference(first: Sample, second: Sample) -> Interval:
    """Decades by which the first arm's stable window is wider; unknown where an edge isn't bracketed, or where an arm
    is unstable at its best rate and so has none.
    """

    def decades(seeds: tuple[int, ...]) -> float:
        one, two = window(first.seeds(seeds)), window(second.seeds(seeds))
        if one is None or two is None or not (one.bracketed and two.bracketed):
            return math.nan
        return one.decades - two.decades

    return _paired(decades, first, second).widened(grid_margin(max(first.step, second.step), ends=4))


def paired_samples(first: Curve, second: Curve) -> tuple[Sample, Sample]:
    """Two arms over the seeds that both have, in the same order."""
    common = [seed for seed in first.seeds if seed in second.seeds]
    one, two = (Sample.of(arm).seeds([arm.seeds.index(seed) for seed in common]) for arm in (first, second))
    return one, two


def shared_rates(arms: Sequence[Curve]) -> list[float]:
    """Rates that every arm has runs at."""
    return [rate for rate in arms[0].rates if all(arm.at(rate) is not None and arm.at(rate).runs for arm in arms)]  # type: ignore[union-attr]


def _paired(statistic: Callable[[tuple[int, ...]], float], first: Sample, second: Sample) -> Interval:
    seeds = first.accuracy.shape[1]
    if seeds != second.accuracy.shape[1]:
        raise ValueError(f"{seeds} seeds against {second.accuracy.shape[1]}: take paired_samples")
    return seed_bootstrap(statistic, seeds) if seeds else Interval(math.nan, None, None, 0)


def _excess(values: Matrix) -> Interval:
    """Mean over the rates above the best rate, seed by seed, over the seeds that ran at every rate."""
    whole = values[:, ~numpy.isnan(values).any(axis=0)]
    return mean_interval((whole.mean(axis=0) - whole.min(axis=0)).tolist() if whole.size else [])


def _powers(interval: Interval) -> Interval:
    low, high = (None if end is None else 10**end for end in (interval.low, interval.high))
    return Interval(10**interval.estimate, low, high, interval.n)


def _means(matrix: Matrix) -> list[float]:
    """Mean of each row's known values; NaN where there are none."""
    known = ~numpy.isnan(matrix)
    sums, counts = numpy.where(known, matrix, 0.0).sum(axis=1), known.sum(axis=1)
    return [
        float(value) if count else math.nan
        for value, count in zip(sums / numpy.maximum(counts, 1), counts, strict=True)
    ]


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value

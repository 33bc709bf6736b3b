"""Two methods on the same test messages: how much better one is, and whether that can be told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray

from ftmatrix.records import CellResult, Row
from ftmatrix.statistics import ALPHA, LEAST_SEEDS, RESAMPLES, Interval, mcnemar
from ftmatrix.study.comparison import Point

Results = Callable[[Row], CellResult]
"""Reads the whole result behind a row: confusion matrix and answers included."""
Points = Sequence[tuple[int, float]]
"""Steps and a value at each."""
Curves = Callable[[Row, str], Points]
"""Reads a run's curve: `loss` or `grad_norm`."""


def cached(results: Results) -> Results:
    """The same, each run read once."""
    read: dict[str, CellResult] = {}

    def result_of(row: Row) -> CellResult:
        if row.run_id not in read:
            read[row.run_id] = results(row)
        return read[row.run_id]

    return result_of


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one set of runs less that of another, over the seeds that both have."""

    accuracy: Interval
    """The interval is over messages and, from three seeds on, over seeds too."""
    p: float
    """McNemar's, two-sided, of each side's majority answer to every message."""
    seeds: int
    messages: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.accuracy.low, self.accuracy.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def reversed(self) -> "Difference":
        """The same, seen from the other side."""
        return replace(self, accuracy=self.accuracy.negated())


def compare_answers(first: Point, second: Point, results: Results) -> Difference | None:
    """Hold the answers of two points against each other, seed by seed; None where they share no seed or message."""
    pairs = [(one, two) for one in first.runs for two in second.runs if one.seed == two.seed]
    right = [_right(results(row)) for pair in pairs for row in pair]
    if not right or not len(right[0]) or len({len(row) for row in right}) > 1:
        return None
    one, two = numpy.array(right[0::2]), numpy.array(right[1::2])  # (seeds, messages)
    low, high = interval_of(one.astype(float) - two)
    majority = [2 * side.sum(axis=0) > len(pairs) for side in (one, two)]
    p = mcnemar(int((majority[0] & ~majority[1]).sum()), int((majority[1] & ~majority[0]).sum()))
    difference = Interval(float(one.mean() - two.mean()), low, high, len(pairs))
    return Difference(difference, p, len(pairs), one.shape[1])


def _right(result: CellResult) -> NDArray[numpy.bool_]:
    answers = result.test.predictions if result.test else ()
    return numpy.array([prediction.correct for prediction in answers], dtype=bool)


def interval_of(differences: NDArray[numpy.float64]) -> tuple[float, float]:
    """Percentile bootstrap of the mean of (seeds, messages), both drawn with replacement; few seeds are not drawn.

    It errs on the wide side, because what is neither the seed's doing nor the message's is counted up to three times.

    References:
        Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2).
    """
    seeds, messages = differences.shape
    random = numpy.random.default_rng(0)
    drawn = random.multinomial(messages, numpy.full(messages, 1 / messages), RESAMPLES) / messages
    weights = numpy.full((RESAMPLES, seeds), 1 / seeds)
    if seeds >= LEAST_SEEDS:
        weights = random.multinomial(seeds, numpy.full(seeds, 1 / seeds), RESAMPLES) / seeds
    means = ((weights @ differences) * drawn).sum(axis=1)
    low, high = numpy.percentile(means, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)

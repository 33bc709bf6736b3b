"""What only plots and lists of a report need, read from the runs themselves: curves and confusion matrices."""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from ftmatrix.records import Row, Stability
from ftmatrix.reporting.summary import ArmSummary, Summary
from ftmatrix.study import Curves, Points, Results


@dataclass(frozen=True)
class Crossed:
    """Two intents, and how many of their messages were answered as the other."""

    intents: tuple[str, str]
    answers: int
    messages: int


@dataclass(frozen=True)
class Confusion:
    """The test answers of an arm at its best rate, counted over its seeds.

    `counts[i, j]` are messages of intent i answered as intent j; the last column is "invalid".
    """

    label: str
    intents: tuple[str, ...]
    counts: NDArray[numpy.int64]

    @property
    def shares(self) -> NDArray[numpy.float64]:
        """Each intent's answers as shares of its messages."""
        messages = self.counts.sum(axis=1, keepdims=True)
        return numpy.asarray(self.counts / numpy.maximum(messages, 1), dtype=numpy.float64)

    def worst_pairs(self, most: int) -> list[Crossed]:
        """The pairs of intents that are most often taken for one another, the worst first."""
        size = len(self.intents)
        crossed = self.counts[:, :size] + self.counts[:, :size].T
        messages = self.counts.sum(axis=1)
        pairs = [
            Crossed((self.intents[i], self.intents[j]), int(crossed[i, j]), int(messages[i] + messages[j]))
            for i in range(size)
            for j in range(i + 1, size)
            if crossed[i, j]
        ]
        return sorted(pairs, key=lambda pair: -pair.answers)[:most]


@dataclass(frozen=True)
class RunCurves:
    """One run, step by step."""

    label: str
    row: Row
    stability: Stability | None
    loss: Points
    grad_norm: Points


@dataclass(frozen=True)
class ContextDetails:
    """The arms of one context, the best first, with what is drawn of their runs."""

    title: str
    arms: tuple[ArmSummary, ...]
    confusions: tuple[Confusion, ...]
    runs: tuple[RunCurves, ...]


def read_details(summary: Summary, results: Results, curves: Curves) -> list[ContextDetails]:
    """Read the runs that are drawn: each arm's first seed at its best rate, and the first that was unstable."""
    return [
        ContextDetails(
            title,
            tuple(arms),
            tuple(found for arm in arms if (found := _confusion(arm, results)) is not None),
            tuple(_run(arm, row, results, curves) for arm in arms for row in _shown(arm)),
        )
        for title, arms in summary.ranked.items()
    ]


def _confusion(arm: ArmSummary, results: Results) -> Confusion | None:
    tests = [result.test for row in (arm.best.runs if arm.best else ()) if (result := results(row)).test]
    by_intents = {tuple(score.intent for score in test.intents): test for test in tests if test}
    if len(by_intents) != 1:  # other data from seed to seed has no sum
        return None
    counts = numpy.array([test.confusion for test in tests if test], dtype=numpy.int64).sum(axis=0)
    return Confusion(arm.curve.label, next(iter(by_intents)), counts)


def _shown(arm: ArmSummary) -> list[Row]:
    """The run at the best rate, and the unstable one at the lowest rate."""
    best = list(arm.best.runs[:1]) if arm.best else []
    unstable = [row for rate in arm.rates for row in rate.point.runs if row.is_unstable]
    return best + [row for row in unstable[:1] if row not in best]


def _run(arm: ArmSummary, row: Row, results: Results, curves: Curves) -> RunCurves:
    return RunCurves(arm.curve.label, row, results(row).stability, curves(row, "loss"), curves(row, "grad_norm"))

"""What a study's runs come to: by rate, by method, between methods, and as answers to its claims."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ftmatrix.records import Row
from ftmatrix.statistics import Interval
from ftmatrix.study import (
    Curve,
    Difference,
    Finding,
    Point,
    Results,
    Sample,
    Sensitivity,
    Window,
    around_best,
    best,
    best_rate,
    by_context,
    compare_answers,
    curves,
    degraded,
    judge,
    paired_samples,
    rate_ratio,
    read_claims,
    sensitivity,
    shared_rates,
    unfair_differences,
    window,
)

REFERENCE = "full"
"""The method whose best rate the others' are divided by."""


@dataclass(frozen=True)
class RateSummary:
    """One arm at one rate. `degraded` is None where there is no run."""

    point: Point
    degraded: bool | None
    is_best: bool


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its rates. Everything behind `rates` is None where no run has finished."""

    curve: Curve
    rates: tuple[RateSummary, ...]
    best: Point | None = None
    window: Window | None = None
    sensitivity_shared: Sensitivity | None = None
    """Over the rates that all arms of the context have."""
    sensitivity_decade: Sensitivity | None = None
    """Over one decade either side of the arm's own best rate."""
    rate_ratio: Interval | None = None
    """Best rate over that of full fine-tuning."""


@dataclass(frozen=True)
class Contrast:
    """Two arms, each at its best rate, on the same test messages."""

    context: str
    first: str
    second: str
    difference: Difference


@dataclass(frozen=True)
class Summary:
    """A study, read."""

    study: str
    rows: tuple[Row, ...]
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[Contrast, ...]
    findings: tuple[Finding, ...]
    unfair: tuple[tuple[str, str], ...]
    """Context and what else differs between its arms."""

    @property
    def failed(self) -> tuple[Row, ...]:
        """Cells without a result."""
        return tuple(row for row in self.rows if not row.completed)

    @property
    def ranked(self) -> dict[str, list[ArmSummary]]:
        """The arms of each context, those with the highest mean test accuracy at their best rates first."""
        grouped: dict[str, list[ArmSummary]] = {}
        for arm in self.arms:
            grouped.setdefault(arm.curve.context.title, []).append(arm)
        return {title: sorted(arms, key=_rank) for title, arms in grouped.items()}

    def contrast(self, context: str, first: str, second: str) -> Difference | None:
        """How far the first of two arms is ahead of the second; None where they share no seed."""
        for found in self.contrasts:
            if (found.context, found.first, found.second) == (context, first, second):
                return found.difference
            if (found.context, found.first, found.second) == (context, second, first):
                return found.difference.reversed()
        return None


def summarise(study: str, rows: Sequence[Row], results: Results, claims: Path | None) -> Summary:
    """Read a study from its rows; `claims` is its file of claims, if it has one.

    Raises:
        ConfigError: the claims can't be read.
    """
    asked = read_claims(claims) if claims else {}
    arms = curves(rows)
    grouped = by_context(arms)
    return Summary(
        study=study,
        rows=tuple(rows),
        arms=tuple(_arm(arm, grouped[arm.context]) for arm in arms),
        contrasts=tuple(found for members in grouped.values() for found in _contrasts(members, results)),
        findings=tuple(judge(asked, arms, results)),
        unfair=tuple(
            (context.title, line) for context, members in grouped.items() for line in unfair_differences(members)
        ),
    )


def _rank(arm: ArmSummary) -> float:
    accuracy = arm.best.mean("accuracy").estimate if arm.best else math.nan
    return math.inf if math.isnan(accuracy) else -accuracy


def _arm(curve: Curve, context: Sequence[Curve]) -> ArmSummary:
    if not curve.rates:
        return ArmSummary(curve, tuple(RateSummary(point, None, is_best=False) for point in curve.points))
    sample = Sample.of(curve)
    top = float(sample.rates[best(sample)])
    bad = dict(zip(curve.rates, degraded(sample), strict=True))
    shared = shared_rates([arm for arm in context if arm.rates])
    return ArmSummary(
        curve,
        tuple(RateSummary(point, bad.get(point.lr), point.lr == top) for point in curve.points),
        best=curve.at(top),
        window=window(sample),
        sensitivity_shared=sensitivity(sample.among(shared)) if shared else None,
        sensitivity_decade=sensitivity(around_best(sample)),
        rate_ratio=_ratio(curve, context),
    )


def _ratio(curve: Curve, context: Sequence[Curve]) -> Interval | None:
    reference = [arm for arm in context if arm.method == REFERENCE and arm.rates]
    if curve.method == REFERENCE or len(reference) != 1:
        return None
    first, second = paired_samples(curve, reference[0])
    return rate_ratio(first, second) if first.accuracy.size else None


def _contrasts(arms: Sequence[Curve], results: Results) -> list[Contrast]:
    found = []
    for first, second in combinations([arm for arm in arms if arm.rates], 2):
        points = [arm.at(best_rate(arm)) for arm in (first, second)]
        if points[0] is None or points[1] is None:
            continue
        difference = compare_answers(points[0], points[1], results)
        if difference is not None:
            found.append(Contrast(first.context.title, first.label, second.label, difference))
    return found

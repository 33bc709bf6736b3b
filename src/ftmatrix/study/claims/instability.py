"""Claims about learning-rate instability: C1, C2, C3a and C3b of the finding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ftmatrix.statistics import ALPHA, equivalence, more_often, share_interval
from ftmatrix.study.answers import Results
from ftmatrix.study.claims.base import Cells, Claim, Evidence, OpenQuestionError, enough
from ftmatrix.study.comparison import Curve, Point
from ftmatrix.study.rates import (
    DEGRADED_POINTS,
    DEGRADED_SHARE,
    Sample,
    Window,
    best,
    degraded,
    paired_samples,
    shared_rates,
    width_difference,
    window,
)


@dataclass(frozen=True, kw_only=True)
class UnstableShare(Claim):
    """Runs are stable at a rate (C1)."""

    supported_at_most: float = 0.0
    contradicted_at_least: float = 0.3

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        enough(point, self.least_runs)
        share = point.unstable / len(point.runs)
        return Evidence(
            says=_unstable(point),
            numbers={"unstable": point.unstable, "runs": len(point.runs), **_interval(point.unstable, point)},
            supports=share <= self.supported_at_most,
            contradicts=share >= self.contradicted_at_least,
        )


@dataclass(frozen=True, kw_only=True)
class Destabilised(Claim):
    """A higher rate destabilises what a lower one leaves stable (C2)."""

    against: Cells
    supported_at_least: float = 0.5
    contradicted_at_most: float = 0.1
    equivalent_within: float = 0.01

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        high, low = self.cells.point(arms), self.against.point(arms)
        enough(high, self.least_runs)
        enough(low, self.least_runs)
        arm = self.cells.arm(arms)
        bad, bad_low = _unstable_or_degraded(high, arm), _unstable_or_degraded(low, arm)
        p = more_often(bad, len(high.runs), bad_low, len(low.runs))
        same = equivalence(high.values("val_accuracy"), low.values("val_accuracy"), self.equivalent_within)
        accuracies = [point.mean("val_accuracy").estimate for point in (high, low)]
        return Evidence(
            says=(
                f"unstable or degraded: {bad} of {len(high.runs)} at lr={high.lr:g}, {bad_low} of {len(low.runs)} at "
                f"lr={low.lr:g} (Fisher p={p:.3g}); validation accuracy {accuracies[0]:.1%} against "
                f"{accuracies[1]:.1%} (that they differ by under {100 * self.equivalent_within:g} points: p={same:.3g})"
            ),
            numbers={
                "unstable_or_degraded": bad,
                "runs": len(high.runs),
                **_interval(bad, high),
                "unstable_or_degraded_low": bad_low,
                "runs_low": len(low.runs),
                "p_equivalent": same,
            },
            supports=bad / len(high.runs) >= self.supported_at_least,
            contradicts=high.unstable / len(high.runs) <= self.contradicted_at_most and same < ALPHA,
            p=p,
        )


@dataclass(frozen=True, kw_only=True)
class ToleratesHigherRates(Claim):
    """One method is stable at rates where another isn't (C3a)."""

    against: Cells
    least_steps: int = 1
    """Grid steps by which the upper edge of the stable window has to be higher."""

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        tolerant, other = self.cells.point(arms), self.against.point(arms)
        enough(tolerant, self.least_runs)
        enough(other, self.least_runs)
        pair = [self.cells.arm(arms), self.against.arm(arms)]
        (edge, bracketed), (other_edge, _) = (_upper_edge(arm, self.least_runs) for arm in pair)
        if edge <= other_edge and not bracketed:
            raise OpenQuestionError(
                f"the grid ends at lr={edge:g}, where {self.cells.method} is still stable: no upper edge to compare; "
                "add higher rates"
            )
        steps = sum(min(edge, other_edge) < lr <= max(edge, other_edge) for lr in shared_rates(pair))
        if edge > other_edge and not steps:
            raise OpenQuestionError(
                f"stable up to {edge:g} against {other_edge:g}, but no rate between was run with both; add one"
            )
        p = more_often(other.unstable, len(other.runs), tolerant.unstable, len(tolerant.runs))
        more = "" if bracketed else " or more"

        def level(point: Point) -> str:
            return f"{point.mean('val_accuracy').estimate:.1%}"

        return Evidence(
            says=(
                f"{self.cells.method}: {_unstable(tolerant)}; {self.against.method}: {_unstable(other)} (Fisher "
                f"p={p:.3g}); neither unstable nor degraded up to {edge:g}{more} against {other_edge:g}, {steps} "
                f"common grid step(s) apart; validation accuracy there {level(tolerant)} against {level(other)}"
            ),
            numbers={
                "unstable": tolerant.unstable,
                "runs": len(tolerant.runs),
                "unstable_against": other.unstable,
                "runs_against": len(other.runs),
                "upper_edge": edge,
                "upper_edge_against": other_edge,
            },
            supports=edge > other_edge and steps >= self.least_steps,
            contradicts=edge <= other_edge,
            p=p,
        )


@dataclass(frozen=True, kw_only=True)
class WiderWindow(Claim):
    """One method's stable window is wider, in decades (C3b)."""

    against: Cells

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        pair = [self.cells.arm(arms), self.against.arm(arms)]
        for arm in pair:
            self._check(arm)
        first, second = paired_samples(*pair)
        if (common := first.accuracy.shape[1]) < self.least_runs:
            raise OpenQuestionError(f"{common} common seed(s); the claim asks for {self.least_runs}", seeds=common)
        difference = width_difference(first, second)
        if difference.low is None or difference.high is None:
            raise OpenQuestionError(f"no interval over {difference.n} common seeds: too many have windows without end")
        return Evidence(
            says=(
                f"{'wider' if difference.estimate >= 0 else 'narrower'} by {abs(difference.estimate):.2f} decades "
                f"(95 % interval of the difference {difference.low:+.2f} to {difference.high:+.2f}, {difference.n} "
                "seeds, the grid's spacing included)"
            ),
            numbers={
                "difference": difference.estimate,
                "low": difference.low,
                "high": difference.high,
                "seeds": difference.n,
            },
            supports=difference.low > 0,
            contradicts=difference.high < 0,
        )

    def _check(self, arm: Curve) -> None:
        """That an arm has a window with two edges, and enough runs at every rate that decides it."""
        found = _window(arm)
        if not found.bracketed:
            edges = f"{found.low:g} to {found.high:g}"
            raise OpenQuestionError(f"the window of {arm.label}, {edges}, reaches the end of its grid; add rates")
        within = [index for index, lr in enumerate(arm.rates) if found.low <= lr <= found.high]
        for lr in arm.rates[within[0] - 1 : within[-1] + 2]:
            if (point := arm.at(lr)) is not None:
                enough(point, self.least_runs)


def _unstable(point: Point) -> str:
    interval = share_interval(point.unstable, len(point.runs))
    kinds = ", ".join(f"{count} {verdict.value}" for verdict, count in point.verdicts.items() if verdict != "stable")
    low, high = interval.low or 0.0, interval.high or 0.0
    return (
        f"{point.unstable} of {len(point.runs)} runs unstable at lr={point.lr:g}{f' ({kinds})' if kinds else ''}, 95 % "
        f"interval {low:.0%} to {high:.0%}"
    )


def _interval(hits: int, point: Point) -> dict[str, float | None]:
    share = share_interval(hits, len(point.runs))
    return {"low": share.low, "high": share.high}


def _unstable_or_degraded(point: Point, arm: Curve) -> int:
    """Runs that are unstable or, above the best rate, degraded; below it, less accuracy is too little training."""
    sample = Sample.of(arm)
    top = best(sample)
    floor = 0.0
    if point.lr > sample.rates[top]:
        level = float(numpy.nanmean(sample.accuracy[top]))
        worse = dict(zip(arm.rates, degraded(sample), strict=True))[point.lr]
        floor = max(DEGRADED_SHARE * level, level - DEGRADED_POINTS) if worse else DEGRADED_SHARE * level
    return sum(row.stability != "stable" or (row.metric("val_accuracy") or 0.0) < floor for row in point.runs)


def _upper_edge(arm: Curve, least_runs: int) -> tuple[float, bool]:
    found = _window(arm)
    for point in [point for point in arm.points if point.runs and point.lr >= found.high][:2]:
        enough(point, least_runs)
    return found.high, found.high_bracketed


def _window(arm: Curve) -> Window:
    found = window(Sample.of(arm)) if arm.rates else None
    if found is None:
        raise OpenQuestionError(f"{arm.label} has no stable window: at its best rate runs broke or learned nothing")
    return found

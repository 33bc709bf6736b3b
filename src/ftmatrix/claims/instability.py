"""Claims about learning-rate instability: C1, C2, C3a and C3b of the finding."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftmatrix.answers import Results
from ftmatrix.claims.base import Cells, Claim, Evidence, OpenQuestionError, enough
from ftmatrix.comparison import Curve, Point
from ftmatrix.rates import DEGRADED_SHARE, Sample, best_rate, paired_samples, width_difference, window
from ftmatrix.statistics import ALPHA, equivalence, more_often, share_interval


@dataclass(frozen=True, kw_only=True)
class UnstableShare(Claim):
    """Runs are stable at a rate (C1)."""

    supported_at_most: float = 0.0
    contradicted_at_least: float = 0.3
    least_runs: int = 5

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        enough(point, self.least_runs)
        share = point.unstable / len(point.runs)
        return Evidence(
            says=_unstable(point),
            numbers={"unstable": point.unstable, "runs": len(point.runs)},
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
    least_runs: int = 5

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        high, low = self.cells.point(arms), self.against.point(arms)
        enough(high, self.least_runs)
        enough(low, self.least_runs)
        arm = self.cells.arm(arms)
        top = arm.at(best_rate(arm))
        floor = DEGRADED_SHARE * (top.mean("val_accuracy").estimate if top else 0.0)
        bad, bad_low = _unstable_or_below(high, floor), _unstable_or_below(low, floor)
        p = more_often(bad, len(high.runs), bad_low, len(low.runs))
        same = equivalence(high.values("val_accuracy"), low.values("val_accuracy"), self.equivalent_within)
        accuracies = [point.mean("val_accuracy").estimate for point in (high, low)]
        return Evidence(
            says=(
                f"unstable or degraded: {bad} of {len(high.runs)} at lr={high.lr:g}, {bad_low} of {len(low.runs)} at "
                f"lr={low.lr:g} (Fisher p={p:.3g}); validation accuracy {accuracies[0]:.1%} against "
                f"{accuracies[1]:.1%} (equivalent within {100 * self.equivalent_within:g} points: p={same:.3g})"
            ),
            numbers={
                "unstable_or_degraded": bad,
                "runs": len(high.runs),
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
    least_runs: int = 5

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        tolerant, other = self.cells.point(arms), self.against.point(arms)
        enough(tolerant, self.least_runs)
        enough(other, self.least_runs)
        edges = [_upper_edge(cells.arm(arms)) for cells in (self.cells, self.against)]
        (edge, bracketed), (other_edge, other_bracketed) = edges
        rates = sorted({*self.cells.arm(arms).rates, *self.against.arm(arms).rates})
        steps = rates.index(edge) - rates.index(other_edge)
        if not other_bracketed and steps <= 0:
            raise OpenQuestionError(
                f"the grid ends at lr={other_edge:g}, where {self.against.method} is still stable: no upper edge to "
                "compare with; add higher rates"
            )
        p = more_often(other.unstable, len(other.runs), tolerant.unstable, len(tolerant.runs))
        more = "" if bracketed else " or more"
        return Evidence(
            says=(
                f"{self.cells.method}: {_unstable(tolerant)}; {self.against.method}: {_unstable(other)} (Fisher "
                f"p={p:.3g}); stable up to {edge:g}{more} against {other_edge:g}, {steps} grid step(s) apart"
            ),
            numbers={
                "unstable": tolerant.unstable,
                "runs": len(tolerant.runs),
                "unstable_against": other.unstable,
                "runs_against": len(other.runs),
                "upper_edge": edge,
                "upper_edge_against": other_edge,
            },
            supports=steps >= self.least_steps,
            contradicts=steps <= 0,
            p=p,
        )


@dataclass(frozen=True, kw_only=True)
class WiderWindow(Claim):
    """One method's stable window is wider, in decades (C3b)."""

    against: Cells

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        pair = [self.cells.arm(arms), self.against.arm(arms)]
        for arm in pair:
            found = window(Sample.of(arm)) if arm.rates else None
            if found is not None and not found.bracketed:
                edges = f"{found.low:g} to {found.high:g}"
                raise OpenQuestionError(f"the window of {arm.label}, {edges}, reaches the end of its grid; add rates")
        difference = width_difference(*paired_samples(*pair))
        if difference.low is None or difference.high is None:
            raise OpenQuestionError(f"no interval over {difference.n} common seed(s): too few, or windows without end")
        return Evidence(
            says=(
                f"wider by {difference.estimate:.2f} decades (95 % interval {difference.low:.2f} to "
                f"{difference.high:.2f}, {difference.n} seeds, the grid's spacing included)"
            ),
            numbers={"difference": difference.estimate, "low": difference.low, "high": difference.high},
            supports=difference.low > 0,
            contradicts=difference.high < 0,
        )


def _unstable(point: Point) -> str:
    interval = share_interval(point.unstable, len(point.runs))
    kinds = ", ".join(f"{count} {verdict.value}" for verdict, count in point.verdicts.items() if verdict != "stable")
    low, high = interval.low or 0.0, interval.high or 0.0
    return (
        f"{point.unstable} of {len(point.runs)} runs unstable at lr={point.lr:g}{f' ({kinds})' if kinds else ''}, 95 % "
        f"interval {low:.0%} to {high:.0%}"
    )


def _unstable_or_below(point: Point, floor: float) -> int:
    """Runs that are unstable, or whose validation accuracy is degraded on its own."""
    return sum(row.stability != "stable" or (row.metric("val_accuracy") or 0.0) < floor for row in point.runs)


def _upper_edge(arm: Curve) -> tuple[float, bool]:
    found = window(Sample.of(arm)) if arm.rates else None
    if found is None:
        raise OpenQuestionError(f"{arm.label} has no stable window: too many unstable runs at its best rate")
    return found.high, found.high_bracketed

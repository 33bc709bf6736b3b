"""A claim is data, written down before the runs: which cells, which statistic, which thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from ftmatrix.study.answers import Results
from ftmatrix.study.comparison import Curve, Point
from ftmatrix.study.rates import best_rate


class Answer(StrEnum):
    """What the runs say to a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Cells:
    """Which runs a claim is about. What is left out matches everything; `lr: best` is the arm's best rate."""

    method: str
    lr: float | Literal["best"] | None = None
    model: str | None = None
    data: str | None = None
    settings: Mapping[str, str | float] = field(default_factory=dict)

    def __str__(self) -> str:
        named = {"method": self.method, "model": self.model, "data": self.data, **self.settings}
        return " ".join(f"{key}={value}" for key, value in named.items() if value is not None)

    def matches(self, curve: Curve) -> bool:
        """Whether an arm is meant."""
        runs = next(row for point in curve.points for row in (*point.runs, *point.failed))
        return (
            curve.method == self.method
            and self.model in (None, curve.context.model)
            and self.data in (None, curve.context.data)
            and all(_same(runs.settings.get(key), value) for key, value in self.settings.items())
        )

    def arm(self, arms: Sequence[Curve]) -> Curve:
        """The one arm that is meant.

        Raises:
            OpenQuestionError: none is, or several are.
        """
        found = [curve for curve in arms if self.matches(curve)]
        if not found:
            raise OpenQuestionError(f"no run with {self} yet")
        if len(found) > 1:
            raise OpenQuestionError(f"several arms are meant: {', '.join(curve.label for curve in found)}")
        return found[0]

    def point(self, arms: Sequence[Curve]) -> Point:
        """The runs at the rate that is meant.

        Raises:
            OpenQuestionError: there are none.
        """
        arm = self.arm(arms)
        if not arm.rates:
            raise OpenQuestionError(f"no finished run of {arm.label} yet")
        lr = best_rate(arm) if self.lr == "best" else self.lr
        if lr is None:
            raise OpenQuestionError("the claim names no rate; add lr to its cells")
        point = arm.at(lr)
        if point is None or not point.runs:
            failed = f"; {len(point.failed)} failed" if point else ""
            raise OpenQuestionError(f"no finished run of {arm.label} at lr={lr:g} yet{failed}")
        return point


def _same(found: str | None, wanted: str | float) -> bool:
    """Whether a recorded setting is what a claim names: as a number where both are numbers."""
    if found is None:
        return False
    try:
        return float(found) == float(wanted)
    except ValueError:
        return found.lower() == str(wanted).lower()


class OpenQuestionError(Exception):
    """Why the runs can't answer a claim, and what there is to go by so far."""

    def __init__(self, why: str, **numbers: float) -> None:
        super().__init__(why)
        self.numbers: dict[str, float | None] = dict(numbers)


@dataclass(frozen=True)
class Evidence:
    """What the runs say, before p-values are adjusted for the number of tests.

    `supports` and `contradicts` hold what was found against the claim's own thresholds; with neither, or with a
    `p` that isn't small enough after adjustment, the claim stays open.
    """

    says: str
    numbers: dict[str, float | None]
    supports: bool
    contradicts: bool
    p: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What all claims have. Subclasses say how runs are weighed."""

    statement: str
    cells: Cells
    p_below: float = 0.05
    least_runs: int = 5
    """With fewer the claim stays open."""
    requires: str | None = None
    """Another claim that has to be supported first, for the same model and data."""

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        """What the runs of one context say.

        Raises:
            OpenQuestionError: they can't say anything yet.
        """
        raise NotImplementedError


def enough(point: Point, least: int) -> None:
    """Refuse to answer from too few runs.

    Raises:
        OpenQuestionError: there are fewer than `least`.
    """
    if len(point.runs) < least:
        failed = f", {len(point.failed)} failed" if point.failed else ""
        raise OpenQuestionError(
            f"{len(point.runs)} run(s) at lr={point.lr:g}{failed}; the claim asks for {least}",
            runs=len(point.runs),
            failed=len(point.failed),
            least_runs=least,
        )

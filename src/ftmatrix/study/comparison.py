"""Runs in the order in which they are compared: arms of a study, each a curve over the learning rates."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy
from numpy.typing import NDArray

from ftmatrix.records import Row, Verdict
from ftmatrix.roles import varying
from ftmatrix.spec import uncompared
from ftmatrix.statistics import Interval, mean_interval

AXES = ("method", "model", "data", "lr", "seed")
"""What a comparison goes by itself."""
DEFINING = ("method.quantize", "method.dora", "method.rslora")
"""Settings that make a method what its name says."""

DIGEST = "data.digest"
"""The fact that tells versions of a data set apart."""
SHORT_DIGEST = 8
"""Of its digits, so many are shown."""

Settings = tuple[tuple[str, str], ...]
"""Settings and their values, sorted."""


@dataclass(frozen=True)
class Context:
    """What the arms of one comparison have in common."""

    model: str
    data: str
    settings: Settings

    title: str
    """The model; the data set and settings too where the study varies them."""


@dataclass(frozen=True)
class Point:
    """The runs of one arm at one rate. Failed cells are kept apart: they have no figures, but are counted."""

    lr: float
    runs: tuple[Row, ...]
    failed: tuple[Row, ...]

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """Those with a result, then those without."""
        return (*self.runs, *self.failed)

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How many runs came to each verdict."""
        return Counter(Verdict(row.stability) for row in self.runs if row.stability)

    @property
    def unstable(self) -> int:
        """Runs in which something broke."""
        return sum(row.is_unstable for row in self.runs)

    def values(self, metric: str) -> list[float]:
        """A metric of every run that has it."""
        return [value for row in self.runs if (value := row.metric(metric)) is not None]

    def mean(self, metric: str) -> Interval:
        """A metric's mean over the seeds."""
        return mean_interval(self.values(metric))


@dataclass(frozen=True)
class Curve:
    """One arm over its learning rates, in rising order. `label` is what tells it from the arms it is compared with."""

    context: Context
    method: str
    label: str
    points: tuple[Point, ...]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of any rate, sorted."""
        return tuple(sorted({row.seed for point in self.points for row in point.runs}))

    @property
    def rates(self) -> tuple[float, ...]:
        """Rates with at least one run."""
        return tuple(point.lr for point in self.points if point.runs)

    def at(self, lr: float) -> Point | None:
        """The runs at a rate."""
        return next((point for point in self.points if math.isclose(point.lr, lr, rel_tol=1e-9)), None)

    def matrix(self, metric: str) -> NDArray[numpy.float64]:
        """A metric as (rates, seeds), NaN where there is no such run or figure. Rates as in `rates`."""
        return self._matrix(lambda row: row.metric(metric))

    def unusable(self) -> NDArray[numpy.float64]:
        """Whether each run broke or learned nothing, as (rates, seeds) of 1 and 0; NaN where there is no run."""
        return self._matrix(lambda row: float(row.is_unstable or row.stability == Verdict.NOT_LEARNED.value))

    def diverged(self) -> NDArray[numpy.float64]:
        """Whether each run diverged, as (rates, seeds) of 1 and 0; NaN where there is no run."""
        return self._matrix(lambda row: float(row.stability == Verdict.DIVERGED.value))

    def _matrix(self, value: Callable[[Row], float | None]) -> NDArray[numpy.float64]:
        column = {seed: index for index, seed in enumerate(self.seeds)}
        filled = [point for point in self.points if point.runs]
        matrix = numpy.full((len(filled), len(self.seeds)), math.nan)
        for line, point in enumerate(filled):
            for row in point.runs:
                found = value(row)
                matrix[line, column[row.seed]] = math.nan if found is None else found
        return matrix


def curves(rows: Sequence[Row]) -> list[Curve]:
    """The arms of a study, by context and method. Settings that vary within one method make arms of their own."""
    varied = differing_settings(rows)
    versions = data_versions(rows)
    several_data = len({row.data for row in rows}) > 1
    grouped: dict[tuple[Context, str, str], list[Row]] = {}
    for row in rows:
        settings = [(key, row.settings[key]) for key in varied if key in row.settings]
        shared = tuple(pair for pair in settings if not pair[0].startswith("method."))
        if row.data in versions and (digest := row.facts.get(DIGEST)):
            shared += (("data version", digest[:SHORT_DIGEST]),)
        own = " ".join(f"{key.removeprefix('method.')}={value}" for key, value in settings if key.startswith("method."))
        named = [row.model, *([f"on {row.data}"] if several_data else []), *(f"{key}={value}" for key, value in shared)]
        context = Context(row.model, row.data, shared, " ".join(named))
        grouped.setdefault((context, row.method, f"{row.method} {own}".strip()), []).append(row)
    found = [
        Curve(context, method, label, tuple(_point(lr, members) for lr in sorted({row.lr for row in members})))
        for (context, method, label), members in grouped.items()
    ]
    return sorted(found, key=lambda curve: (curve.context.title, curve.label))


def data_versions(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Data sets whose content differs between runs with the same settings, with the digests of their versions."""
    found: dict[tuple[str, Settings], set[str]] = {}
    for row in rows:
        if digest := row.facts.get(DIGEST):
            asked = tuple(sorted((key, value) for key, value in row.settings.items() if key.startswith("data.")))
            found.setdefault((row.data, asked), set()).add(digest)
    return {data: sorted(digests) for (data, _), digests in found.items() if len(digests) > 1}


def by_context(found: Sequence[Curve]) -> dict[Context, list[Curve]]:
    """Arms that may be compared with one another."""
    grouped: dict[Context, list[Curve]] = {}
    for curve in found:
        grouped.setdefault(curve.context, []).append(curve)
    return grouped


@cache
def no_settings() -> frozenset[str]:
    """Parameters of runs that are axes of their own, or that runs of one cell may differ in."""
    return uncompared() | {*AXES}


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """Settings in which cells of one method, model and data set differ beside rate and seed."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row.method, row.model, row.data), []).append(row.settings)
    return sorted(varying(groups.values()) - no_settings())


def unfair_differences(arms: Sequence[Curve]) -> list[str]:
    """What differs between the arms of one context beside method and rate, a line each; none where all is fair."""
    lines = []
    held = [
        (curve.label, row.settings | row.facts) for curve in arms for point in curve.points for row in point.all_rows
    ]
    for key in sorted(varying([[values for _, values in held]]) - no_settings() - {*DEFINING}):
        by_label: dict[str, set[str]] = {}
        for label, values in held:
            if key in values:  # only the arms that have such a setting
                by_label.setdefault(label, set()).add(values[key])
        lines.append(f"{key}: " + "; ".join(f"{label} {', '.join(sorted(found))}" for label, found in by_label.items()))
    for name in ("rates", "seeds"):
        of_arm: dict[str, tuple[float, ...]] = {arm.label: getattr(arm, name) for arm in arms}
        if len(set(of_arm.values())) > 1:
            listed = (f"{label} {', '.join(f'{value:g}' for value in values)}" for label, values in of_arm.items())
            lines.append(f"{name}: {'; '.join(listed)}")
    return lines


def _point(lr: float, rows: Sequence[Row]) -> Point:
    members = sorted((row for row in rows if row.lr == lr), key=lambda row: row.seed)
    return Point(
        lr,
        runs=tuple(row for row in members if row.completed),
        failed=tuple(row for row in members if not row.completed),
    )

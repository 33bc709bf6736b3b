"""The report's answer in sentences, derived from its numbers; what can't be told is said to be so."""

import math
from collections.abc import Callable, Sequence

from ftmatrix.reporting.formats import between, mean_of, spread, window_text
from ftmatrix.reporting.summary import ArmSummary, Summary
from ftmatrix.study import DEGRADED_POINTS, Point
from ftmatrix.text import mebibytes, percent, seconds

SAME_COST = 1.1
"""Costs closer than this factor are no difference: peaks and times on a CPU vary as much from run to run."""
SAME_POINTS = 0.01
"""Validation accuracies closer than this don't decide between two rates, whatever their intervals."""
MANY_UNENDED = 0.1
"""Share of answers that don't end from which on it is said."""
BUSY_CORES = 0.25
"""More than so many CPU cores at work for others, and times are no measurement of a method."""
STEADY = 1.25
"""Equal runs whose times differ by more than this factor had other work beside them."""


def conclusions(summary: Summary) -> dict[str, list[str]]:
    """By context: which method for accuracy, for memory, for time, which rates are safe, and how sure that is."""
    return {
        title: [
            _accuracy(title, ranked, summary),
            *_cost(ranked, "peak_bytes_train", "Least memory in training", lambda value: f"{mebibytes(value)} MiB"),
            *_time(ranked),
            _safe_rates(ranked),
            *_unended(ranked),
        ]
        for title, arms in summary.ranked.items()
        if (ranked := [arm for arm in arms if arm.best])
    }


def _accuracy(title: str, ranked: Sequence[ArmSummary], summary: Summary) -> str:
    first, *others = ranked
    rivals = _rivals(first)
    top = _best(first)
    said = [
        f"Most accurate: {_named(first)}, {spread(top.mean('accuracy'), percent)} % of the test messages{_lost(top)}."
    ]
    same, worse, better = [], [], []
    for other in others:
        found = summary.contrast(title, first.curve.label, other.curve.label)
        if found is None:
            same.append(f"{_named(other)} (no seed, or not the same test messages)")
        elif found.distinguishable and found.accuracy.estimate < 0:  # the means are over other seeds than these
            ahead = between(found.accuracy.negated(), lambda value: f"{100 * value:.1f}")
            better.append(f"{_named(other)} by {ahead} points")
        elif found.distinguishable:
            worse.append(f"{_named(other)} by {between(found.accuracy, lambda value: f'{100 * value:.1f}')} points")
        else:
            same.append(f"{_named(other)}, {spread(_best(other).mean('accuracy'), percent)} %")
    if rivals:
        said.append(f"By validation its rate might as well be {' or '.join(map(_described, rivals))}.")
    if same:
        said.append(f"Not distinguishable from it: {'; '.join(same)}.")
    if worse:
        said.append(f"Behind it: {'; '.join(worse)}.")
    if better:
        said.append(f"Ahead of it on the seeds that both have: {'; '.join(better)}.")
    return " ".join(said)


def _cost(ranked: Sequence[ArmSummary], metric: str, title: str, show: Callable[[float], str]) -> list[str]:
    known = sorted(
        ((mean, arm) for arm in ranked if (mean := _best(arm).mean(metric)).n), key=lambda pair: pair[0].estimate
    )
    if len(known) < 2:
        return [f"{title}: known of {arm.curve.label} alone, {show(mean.estimate)}." for mean, arm in known]
    least, first = known[0]
    parts = []
    for mean, arm in known[1:]:
        times = mean.estimate / least.estimate
        more = f"{times:.2g} times as much" if times >= SAME_COST else "about the same"
        if times >= SAME_COST and least.low is not None and mean.low is not None and least.overlaps(mean):
            more += ", which seeds vary by too"
        parts.append(f"{arm.curve.label} {show(mean.estimate)} ({more})")
    return [f"{title}: {first.curve.label}, {show(least.estimate)}; {', '.join(parts)}."]


def _time(ranked: Sequence[ArmSummary]) -> list[str]:
    """The fastest method, unless equal runs took so different times that the comparison would be one of neighbours."""
    busiest = max((cores for arm in ranked for cores in _best(arm).values("neighbour_cores")), default=0.0)
    if busiest > BUSY_CORES:
        return [
            f"Time isn't compared: while one of these runs trained, other programs kept {busiest:.1f} CPU cores busy."
        ]
    ratios = []
    for arm in ranked:
        paces = [
            took / steps
            for rate in arm.rates
            for row in rate.point.runs
            if (took := row.metric("seconds_train")) and (steps := row.metric("steps"))
        ]
        if paces:
            ratios.append((max(paces) / min(paces), arm.curve.label))
    factor, label = max(ratios, default=(1.0, ""))
    if factor > STEADY:
        return [
            f"Time isn't compared: steps of {label} took up to {factor:.2g} times as long in one run as in another; "
            "other programs must have been running."
        ]
    return _cost(ranked, "seconds_train", "Fastest to train", lambda value: f"{seconds(value)} s")


def _safe_rates(ranked: Sequence[ArmSummary]) -> str:
    parts = [f"{arm.curve.label} {window_text(arm.window)}" for arm in ranked]
    return (
        "Stable rates (at most one run in five unstable, validation accuracy over nine tenths of the best): "
        f"{'; '.join(parts)}."
    )


def _unended(ranked: Sequence[ArmSummary]) -> list[str]:
    """Arms whose answers begin with a label and run on: their accuracy says little of what they know."""
    return [
        f"{percent(mean.estimate)} % of the answers of {_named(arm)} begin with a label and don't end there, so that "
        f"they count as wrong: within the label set it is {mean_of(_best(arm), 'accuracy_constrained', percent)} %. "
        "Training hasn't taught it the end token (adapters leave the output layer frozen); framing.end='\"\\n\"' ends "
        "answers with a line break instead."
        for arm in ranked
        if (mean := _best(arm).mean("unended_rate")).n and mean.estimate >= MANY_UNENDED
    ]


def _rivals(arm: ArmSummary) -> list[Point]:
    """Rates that validation doesn't tell from the best one: the choice between them is chance."""
    best = _best(arm)
    top = best.mean("val_accuracy")
    found = []
    for rate in arm.rates:
        if rate.point.lr == best.lr or not rate.point.runs or rate.degraded:
            continue
        level = rate.point.mean("val_accuracy")
        told = top.low is not None and level.low is not None
        near = level.estimate > top.estimate - DEGRADED_POINTS and told and top.overlaps(level)
        if near or level.estimate > top.estimate - SAME_POINTS:
            found.append(rate.point)
    return found


def _described(point: Point) -> str:
    """A rate with what it comes to."""
    return f"{point.lr:g} ({spread(point.mean('accuracy'), percent)} %{_lost(point)})"


def _lost(point: Point) -> str:
    """What it cost in forgetting, where that is known."""
    forgetting = point.mean("forgetting")
    return f", forgetting {forgetting.estimate:.3g}" if forgetting.n and math.isfinite(forgetting.estimate) else ""


def _named(arm: ArmSummary) -> str:
    return f"{arm.curve.label} at lr {_best(arm).lr:g}"


def _best(arm: ArmSummary) -> Point:
    if arm.best is None:
        raise ValueError(f"{arm.curve.label} has no finished run")
    return arm.best

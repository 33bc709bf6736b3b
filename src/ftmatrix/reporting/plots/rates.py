"""Accuracy and loss over the learning rate."""

import math
from collections.abc import Sequence
from typing import Any

from ftmatrix.records import Verdict
from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.plots.style import (
    INK,
    Plot,
    colour,
    legend_columns,
    line_style,
    log_ticks,
    marker,
    named,
    new_figure,
)
from ftmatrix.reporting.summary import ArmSummary

NUDGE = 1.05
"""Arms are moved apart by this factor along the rate, so that their dots don't hide one another."""
MOST_TICKS = 8
"""Of more rates not each one is named on the axis."""


def draw_rates(context: ContextDetails, labels: Sequence[str]) -> Plot:
    """Test accuracy and validation NLL over the rate, a line an arm, a dot a seed, a cross over each unstable run."""
    with new_figure(1, 2, 3.8) as (figure, ((left, right),)):
        for arm in context.arms:
            _draw(left, arm, labels, "accuracy", scale=100)
            _draw(right, arm, labels, "val_nll", scale=1)
        left.set_ylabel("test accuracy (%)")
        right.set_ylabel("validation NLL (nats per label token)")
        right.set_yscale("log")
        log_ticks(right.yaxis)
        rates = sorted({rate.point.lr for arm in context.arms for rate in arm.rates})
        for axes in (left, right):
            axes.set_xscale("log")
            log_ticks(axes.xaxis, rates if len(rates) <= MOST_TICKS else ())
            axes.set_xlabel("learning rate")
        lines = [line for line in left.get_lines() if not str(line.get_label()).startswith("_")]
        unstable = left.scatter([], [], marker="x", color=INK, s=45, label="unstable run")
        handles = [*lines, unstable]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles))
    return Plot(
        named("rates", context.title),
        f"Accuracy and loss over the learning rate: {context.title}",
        "Lines go through the means over seeds, each small mark is one seed, a cross an unstable run. A coloured cross "
        "at the upper edge is a run without a finite number; its line has a gap there.",
        figure,
    )


def _draw(axes: Any, arm: ArmSummary, labels: Sequence[str], metric: str, *, scale: float) -> None:
    index = labels.index(arm.curve.label)
    nudge = NUDGE ** (index - (len(labels) - 1) / 2)
    points = [rate.point for rate in arm.rates if rate.point.values(metric)]
    means = [scale * sum(point.values(metric)) / len(point.values(metric)) for point in points]
    look = {"color": colour(index), "marker": marker(index)}
    line = {"linestyle": line_style(index), "linewidth": 1.6, "markersize": 5}
    axes.plot([point.lr * nudge for point in points], means, label=arm.curve.label, **line, **look)
    seeds = [(point.lr * nudge, row.metric(metric), row.stability) for point in points for row in point.runs]
    known = [(lr, scale * value, verdict) for lr, value, verdict in seeds if value is not None]
    placed = [seed for seed in known if math.isfinite(seed[1])]
    lost = [lr for lr, value, _ in known if not math.isfinite(value)]  # have no place of their own
    unstable = [seed[:2] for seed in placed if seed[2] != Verdict.STABLE.value]
    axes.plot(*_columns(placed), markersize=3.5, alpha=0.45, linewidth=0, label="_seed", **look)
    axes.scatter(*_columns(unstable), marker="x", color=INK, s=45, zorder=3)
    edge = axes.get_xaxis_transform()
    axes.scatter(lost, [0.98] * len(lost), transform=edge, marker="x", color=colour(index), s=45, zorder=3)


def _columns(places: Sequence[tuple[Any, ...]]) -> tuple[list[float], list[float]]:
    return [place[0] for place in places], [place[1] for place in places]

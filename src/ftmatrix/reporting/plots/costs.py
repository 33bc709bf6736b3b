"""What an arm costs, and what it gives for that."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D

from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.plots.style import (
    COLOURS,
    INK,
    Plot,
    colour,
    legend_columns,
    log_ticks,
    marker,
    named,
    new_figure,
)
from ftmatrix.study import UNSTABLE_SHARE, Point

PARTS = (
    ("weight_bytes", "weights", ""),
    ("gradient_bytes", "gradients", "//"),
    ("optimizer_bytes", "optimizer state", ".."),
    (None, "activations, logits, workspace", "xx"),
)
MIB = 2**20
MOST_FORGETTING = 1e4
"""That is drawn; what is larger stands there, so that the others can be told apart."""
COSTS = (
    ("peak_bytes_train", "peak memory of training (MiB)", MIB, math.inf),
    ("seconds_train", "training time (s)", 1, math.inf),
    ("forgetting", "perplexity on general text, after over before", 1, MOST_FORGETTING),
)


def draw_memory(context: ContextDetails) -> Plot | None:
    """Peak memory of training by part, a bar an arm; None where it isn't known."""
    arms = [(arm, point) for arm in context.arms if (point := arm.best) and point.values("peak_bytes_train")]
    if not arms:
        return None
    with new_figure(1, 1, 1.6 + 0.42 * len(arms)) as (figure, ((axes,),)):
        for place, (_, point) in enumerate(reversed(arms)):
            _stack(axes, place, point)
        axes.set_yticks(range(len(arms)), [f"{arm.curve.label}, lr={point.lr:g}" for arm, point in reversed(arms)])
        axes.set_xlabel("peak memory of training (MiB)")
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.3 * axes.dataLim.x1)  # room for the figures behind the bars
        found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found))
    return Plot(
        named("memory", context.title),
        f"Peak memory by part: {context.title}",
        "Means over the seeds at each method's best rate. The last part is what the peak has beyond the others; the "
        "tick is the forecast made before the run.",
        figure,
    )


def _stack(axes: Any, place: int, point: Point) -> None:
    left, peak, forecast = 0.0, _mean(point, "peak_bytes_train") / MIB, _mean(point, "forecast_bytes_train") / MIB
    for index, (metric, name, hatch) in enumerate(PARTS):
        width = _mean(point, metric) / MIB if metric else max(0.0, peak - left)
        axes.barh(place, width, left=left, height=0.62, color=COLOURS[index], hatch=hatch, edgecolor=INK,
                  linewidth=0.6, alpha=0.85, label=name)  # fmt: skip
        left += width
    foretold = bool(point.values("forecast_bytes_train"))
    axes.text(
        max(peak, forecast), place, f"  {peak:,.0f}{f', forecast {forecast:,.0f}' if foretold else ''}", va="center"
    )
    if foretold:
        axes.plot(forecast, place, marker="|", markersize=14, color=INK,
                  linewidth=0, label="forecast")  # fmt: skip


def draw_trade_offs(context: ContextDetails, labels: Sequence[str]) -> Plot | None:
    """Accuracy against memory, time and forgetting, every arm at every rate, with the Pareto front."""
    with new_figure(1, len(COSTS), 3.9) as (figure, (line,)):
        for axes, (metric, title, unit, most) in zip(line, COSTS, strict=True):
            _scatter(axes, context, labels, metric, unit, most)
            axes.set_xlabel(title)
        for axes in line[:2]:
            if axes.has_data():
                axes.set_xlim(0, 1.08 * axes.dataLim.x1)
        line[0].set_ylabel("test accuracy (%)")
        line[2].set_xscale("log")
        log_ticks(line[2].xaxis)
        shown = [arm.curve.label for arm in context.arms if arm.best]
        if not shown:
            return None
        handles: list[Any] = [
            Line2D([], [], color=colour(index), marker=marker(index), linewidth=0, label=label)
            for index, label in enumerate(labels)
            if label in shown
        ]
        handles.append(Line2D([], [], color=INK, linewidth=0.9, alpha=0.7, label="Pareto front"))
        handles.append(Line2D([], [], color=INK, marker="x", linewidth=0, label="unstable rate"))
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns(handles))
    return Plot(
        named("trade-offs", context.title),
        f"What accuracy costs: {context.title}",
        "Each mark is a method at one rate, the mean over its seeds; the ringed one is its best rate. Nothing beats a "
        "mark on the line in both accuracy and cost (the Pareto front; one mark that beats all has no line). A cross: "
        "more than one run in five was unstable there. Forgetting beyond 10,000 stands there; what isn't a "
        "finite number isn't drawn.",
        figure,
    )


def _scatter(axes: Any, context: ContextDetails, labels: Sequence[str], metric: str, unit: float, most: float) -> None:
    places = []
    for arm in context.arms:
        index = labels.index(arm.curve.label)
        for rate in arm.rates:
            if not (rate.point.values(metric) and rate.point.values("accuracy")):
                continue
            place = (min(_mean(rate.point, metric) / unit, most), 100 * _mean(rate.point, "accuracy"))
            if not all(map(math.isfinite, place)):
                continue
            places.append(place)
            ring = INK if rate.is_best else "none"
            axes.scatter(*place, color=colour(index), marker=marker(index), edgecolor=ring, s=46, zorder=3)
            if rate.point.unstable > UNSTABLE_SHARE * len(rate.point.runs):
                axes.scatter(*place, marker="x", color=INK, s=60, linewidth=1, zorder=4)
    if front := pareto(places):
        axes.step(*zip(*front, strict=True), where="post", color=INK, linewidth=0.9, alpha=0.7)


def pareto(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places (cost, gain) that no other one beats in both, by rising cost.

    >>> pareto([(1, 50), (2, 40), (3, 70)])
    [(1, 50), (3, 70)]
    """
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(places, key=lambda place: (place[0], -place[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _mean(point: Point, metric: str) -> float:
    values = point.values(metric)
    return sum(values) / len(values) if values else 0.0

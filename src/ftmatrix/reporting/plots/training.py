"""Runs step by step, with what made one of them unstable."""

from collections.abc import Sequence
from typing import Any

import numpy
import pandas

from ftmatrix.records import Verdict
from ftmatrix.reporting.details import ContextDetails, RunCurves
from ftmatrix.reporting.plots.style import INK, Plot, colour, log_ticks, named, new_figure
from ftmatrix.study import Points

LARGEST = 1e30
"""Stands in MLflow for infinity, or soon will: not drawn."""
PARTS = 40
"""Of a run; the line is the running median over so much of it."""


def draw_training(context: ContextDetails, labels: Sequence[str]) -> Plot | None:
    """Training loss and gradient norm of each arm's best and first unstable run; None where no run has steps."""
    if not any(run.loss for run in context.runs):
        return None
    with new_figure(1, 2, 4.2) as (figure, ((left, right),)):
        for run in context.runs:
            _draw(left, run, labels, run.loss, "loss")
            _draw(right, run, labels, run.grad_norm, "grad_norm")
        left.set_ylabel("training loss (nats per label token)")
        right.set_ylabel("gradient norm before clipping")
        for axes in (left, right):
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
            axes.set_xlabel("optimizer step")
        handles = left.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
    return Plot(
        named("training", context.title),
        f"Training, step by step: {context.title}",
        "Of each method the first seed at its best rate (solid) and the unstable run at the lowest rate "
        "(dashed), with a star where that showed first. Pale: every step; the line: their running median.",
        figure,
    )


def _draw(axes: Any, run: RunCurves, labels: Sequence[str], points: Points, series: str) -> None:
    drawn = [(step, value) for step, value in points if numpy.isfinite(value) and 0 < value < LARGEST]
    if not drawn:
        return
    unstable = run.row.stability != Verdict.STABLE.value
    name = f"{run.label}, lr={run.row.lr:g}, seed {run.row.seed}: {run.row.stability}"
    steps, values = zip(*drawn, strict=True)
    shade = colour(labels.index(run.label))
    axes.plot(steps, values, color=shade, linewidth=0.8, alpha=0.35, label="_steps")
    middle = pandas.Series(values).rolling(max(1, len(values) // PARTS), center=True, min_periods=1).median()
    axes.plot(steps, middle, color=shade, linewidth=1.5, linestyle="--" if unstable else "-", label=name)
    trigger = run.stability
    if trigger and trigger.series == series and (step := trigger.step) is not None:
        at = min(drawn, key=lambda point: abs(point[0] - step))  # what isn't finite has no place of its own
        axes.plot(*at, marker="*", markersize=13, color=shade, markeredgecolor=INK, label="_trigger")

"""The plots of a report: accuracy and loss over the learning rate."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ftmatrix.report.summary import ArmSummary, Summary

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, which colour-blind readers tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""One an arm, so that a print without colour can be read too."""
NUDGE = 1.05
"""Arms are moved apart by this factor along the rate, so that their dots don't hide one another."""


def draw_curves(summary: Summary, folder: Path) -> list[Path]:
    """Test accuracy and validation NLL over the rate, a column a context, a line an arm."""
    by_context: dict[str, list[ArmSummary]] = {}
    for arm in summary.arms:
        if arm.best is not None:
            by_context.setdefault(arm.curve.context.title, []).append(arm)
    if not by_context:
        return []
    figure = Figure(figsize=(4.6 * len(by_context) + 0.6, 6.4), layout="constrained")
    axes = figure.subplots(2, len(by_context), squeeze=False, sharex="col")
    labels = sorted({arm.curve.label for arm in summary.arms})
    for column, (title, arms) in enumerate(by_context.items()):
        for arm in arms:
            _draw(axes[0][column], arm, labels, "accuracy", scale=100)
            _draw(axes[1][column], arm, labels, "val_nll", scale=1)
        axes[0][column].set_title(title, fontsize=10)
        axes[1][column].set_xlabel("learning rate")
        axes[1][column].set_yscale("log")
        for line in axes:
            line[column].set_xscale("log")
            line[column].grid(alpha=0.25)
    axes[0][0].set_ylabel("test accuracy (%)")
    axes[1][0].set_ylabel("validation NLL (nats a label token)")
    handles = {str(line.get_label()): line for line in axes[0][0].get_lines() if not line.get_label().startswith("_")}
    unstable = axes[0][0].scatter([], [], marker="x", color="black", s=45, label="unstable run")
    figure.legend(handles=[*handles.values(), unstable], loc="outside lower center", ncols=len(handles) + 1, fontsize=9)
    path = folder / "rates.png"
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)
    return [path]


def _draw(axes: Any, arm: ArmSummary, labels: list[str], metric: str, *, scale: float) -> None:
    """One arm: a line through the means, a dot a seed, a cross over each unstable run."""
    index = labels.index(arm.curve.label)
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    nudge = NUDGE ** (index - (len(labels) - 1) / 2)
    points = [rate.point for rate in arm.rates if rate.point.values(metric)]
    means = [scale * sum(point.values(metric)) / len(point.values(metric)) for point in points]
    axes.plot([point.lr * nudge for point in points], means, color=colour, marker=marker, markersize=5,
              linewidth=1.6, label=arm.curve.label)  # fmt: skip
    for point in points:
        for row in point.runs:
            value = row.metric(metric)
            if value is not None:
                place = (point.lr * nudge, scale * value)
                axes.plot(*place, marker=marker, markersize=3.5, color=colour, alpha=0.45, linewidth=0, label="_seed")
                if row.stability != "stable":
                    axes.scatter(*place, marker="x", color="black", s=45, zorder=3)

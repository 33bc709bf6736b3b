"""The plots of a report, context by context."""

from collections.abc import Sequence

from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.plots.confusions import draw_confusion, draw_difference
from ftmatrix.reporting.plots.costs import draw_memory, draw_trade_offs
from ftmatrix.reporting.plots.rates import draw_rates
from ftmatrix.reporting.plots.style import Plot as Plot
from ftmatrix.reporting.plots.training import draw_training


def draw(contexts: Sequence[ContextDetails]) -> list[Plot]:
    """Every plot that has something to show. An arm has one colour and mark in all of them."""
    labels = sorted({arm.curve.label for context in contexts for arm in context.arms})
    drawn = [
        plot
        for context in contexts
        if any(arm.best for arm in context.arms)  # else there is nothing but failures
        for plot in (
            draw_rates(context, labels),
            draw_training(context, labels),
            draw_memory(context),
            draw_trade_offs(context, labels),
            draw_confusion(context),
            draw_difference(context),
        )
    ]
    return [plot for plot in drawn if plot is not None]

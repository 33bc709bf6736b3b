"""Which intents are taken for which, and where two methods differ in that."""

from typing import Any

import numpy
from matplotlib.colors import Normalize, PowerNorm
from numpy.typing import NDArray

from ftmatrix.reporting.details import Confusion, ContextDetails
from ftmatrix.reporting.plots.style import Plot, named, new_figure

MOST_INTENTS = 40
"""Drawn of a larger set: those with the most errors."""


def draw_confusion(context: ContextDetails) -> Plot | None:
    """The confusion matrix of the best arm as a heat map; None where there are no answers."""
    if not context.confusions:
        return None
    first = context.confusions[0]
    chosen = _most_wrong(first.counts)
    with new_figure(1, 1, _height(len(chosen))) as (figure, ((axes,),)):
        image = _heat(axes, 100 * first.shares, first.intents, chosen, "Blues", PowerNorm(0.5, 0, 100))
        figure.colorbar(image, ax=axes, label="share of the intent's messages (%), drawn as its root", shrink=0.7)
    return Plot(
        named("confusion", context.title),
        f"What is taken for what: {first.label}, {context.title}",
        f"Test answers at the best rate, summed over seeds.{_cut(first, chosen)}",
        figure,
    )


def draw_difference(context: ContextDetails) -> Plot | None:
    """The best arm's confusion less the next one's; None where fewer than two arms answered the same intents."""
    if len(context.confusions) < 2 or context.confusions[0].intents != context.confusions[1].intents:
        return None
    first, second = context.confusions[:2]
    chosen = _most_wrong(first.counts + second.counts)
    difference = 100 * (first.shares - second.shares)
    reach = max(float(numpy.abs(difference).max()), 1.0)
    with new_figure(1, 1, _height(len(chosen))) as (figure, ((axes,),)):
        image = _heat(axes, difference, first.intents, chosen, "PuOr", Normalize(-reach, reach))
        label = f"{first.label} less {second.label} (points of the intent's messages)"
        figure.colorbar(image, ax=axes, label=label, shrink=0.7)
    return Plot(
        named("difference", context.title),
        f"Where they differ: {first.label} less {second.label}, {context.title}",
        f"On the diagonal, purple is where {first.label} is right more often; beside it, purple is a mistake that it "
        f"makes more often.{_cut(first, chosen)}",
        figure,
    )


def _most_wrong(counts: NDArray[numpy.int64]) -> list[int]:
    errors = counts.sum(axis=1) - counts.diagonal()
    return sorted(numpy.argsort(-errors, kind="stable")[:MOST_INTENTS].tolist())


def _heat(
    axes: Any,
    values: NDArray[numpy.float64],
    intents: tuple[str, ...],
    chosen: list[int],
    colours: str,
    norm: Normalize,
) -> Any:
    columns = [*chosen, len(intents)]
    image = axes.imshow(values[numpy.ix_(chosen, columns)], cmap=colours, norm=norm, interpolation="nearest")
    size = 7 if len(chosen) <= 30 else 5.5
    names = [*(intents[index] for index in chosen), "invalid"]
    axes.set_xticks(range(len(columns)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(chosen)), names[:-1], fontsize=size)
    axes.set_xlabel("answer")
    axes.set_ylabel("intent")
    axes.grid(visible=False)
    return image


def _height(intents: int) -> float:
    return 2.4 + 0.155 * intents


def _cut(confusion: Confusion, chosen: list[int]) -> str:
    left = len(confusion.intents) - len(chosen)
    return f" The {len(chosen)} intents with the most errors; {left} are left out." if left else ""

"""Figures with their uncertainty, as words."""

import math
from collections.abc import Callable

from ftmatrix.statistics import Interval
from ftmatrix.study import Point, Window
from ftmatrix.text import UNKNOWN


def spread(interval: Interval, show: Callable[[float], str]) -> str:
    """A mean with half the width of its interval."""
    if interval.low is None or interval.high is None:
        return show(interval.estimate)
    return f"{show(interval.estimate)} ± {show((interval.high - interval.low) / 2)}"


def between(interval: Interval, show: Callable[[float], str]) -> str:
    """An estimate with the ends of its interval."""
    if interval.low is None or interval.high is None:
        return show(interval.estimate)
    return f"{show(interval.estimate)} ({show(interval.low)} to {show(interval.high)})"


def mean_of(point: Point, metric: str, show: Callable[[float], str]) -> str:
    """A metric's mean over the seeds, without its spread. One run without a number leaves none."""
    values = point.values(metric)
    if not values:
        return UNKNOWN
    mean = sum(values) / len(values)
    return show(mean) if math.isfinite(mean) else "not finite"


def window_text(window: Window | None) -> str:
    """The ends of a stable window; ≤ and ≥ mark an edge that the grid doesn't reach."""
    if window is None:
        return "none around its best rate, where runs broke or learned nothing"
    if window.low == window.high:
        ends = (("below", window.low_bracketed), ("above", window.high_bracketed))
        beyond = " and ".join(end for end, seen in ends if not seen)
        return f"{window.low:g}, perhaps {beyond} it" if beyond else f"{window.low:g} alone"
    low, high = ("" if window.low_bracketed else "≤"), ("" if window.high_bracketed else "≥")
    return f"{low}{window.low:g} to {high}{window.high:g}"

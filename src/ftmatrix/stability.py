"""The verdict on one run: stable, spiky, collapsed or diverged, with what triggered it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from ftmatrix.records import Stability, Step, Verdict

WINDOW_STEPS = 64
"""Trailing steps that a value is held against."""
LEAST_HISTORY_STEPS = 32
"""A step with a shorter history is not judged; a run without any judged step has no spike score."""
SPIKE_DEVIATIONS = 7.0
"""Robust standard deviations above the trailing median that make a spike."""
LEAST_DEVIATION = 0.01
"""What counts as one robust standard deviation of a log-series that varies less: 1 %, so that a jump out of a flat
curve is seen."""
LEAST_VALUE = 1e-6
"""Losses and gradient norms below this are taken for it: what a run that knows its data by heart does down there, to
an exact 0 at times, is rounding."""
MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""


@dataclass(frozen=True)
class Spike:
    """A step that stands out: `value` is the raw loss or gradient norm."""

    step: int
    series: str
    value: float


def find_spikes(steps: Sequence[Step], *, warmup_steps: int) -> tuple[list[Spike], int]:
    """Spikes in log-loss or log-gradient-norm, and how many steps were judged.

    A step is judged against the median and MAD of up to `WINDOW_STEPS` finite steps before it; warm-up steps are
    neither judged nor part of a window.

    References:
        OLMo 2 (2025), arXiv:2501.00656, section 3: spikes of 7 standard deviations over a trailing window; here on
        a log scale and with robust estimates, because the raw loss of short runs gave false alarms.
    """
    after = [step for step in steps if step.index >= warmup_steps]
    if len(after) <= LEAST_HISTORY_STEPS:
        return [], 0
    spikes: dict[int, Spike] = {}
    judged = numpy.zeros(len(after), dtype=bool)
    for series in ("loss", "grad_norm"):
        values = numpy.array([getattr(step, series) for step in after], dtype=float)
        deviations = _deviations(values)
        judged |= numpy.isfinite(deviations)
        for row in numpy.flatnonzero(deviations > SPIKE_DEVIATIONS):
            spikes.setdefault(after[row].index, Spike(after[row].index, series, float(values[row])))
    return sorted(spikes.values(), key=lambda spike: spike.step), int(judged.sum())


def _deviations(values: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Robust standard deviations of each log-value above the window before it; NaN where it can't be judged."""
    finite = numpy.isfinite(values)
    logs = numpy.log(numpy.where(finite, numpy.maximum(values, LEAST_VALUE), 1.0))
    logs[~finite] = math.nan
    before = numpy.concatenate([numpy.full(WINDOW_STEPS, math.nan), logs[:-1]])
    windows = numpy.lib.stride_tricks.sliding_window_view(before, WINDOW_STEPS)  # (steps, window)
    told = (numpy.isfinite(windows).sum(axis=1) >= LEAST_HISTORY_STEPS) & finite
    deviations = numpy.full(len(values), math.nan)
    median = numpy.nanmedian(windows[told], axis=1)
    spread = MAD_TO_DEVIATION * numpy.nanmedian(numpy.abs(windows[told] - median[:, None]), axis=1)
    deviations[told] = (logs[told] - median) / numpy.maximum(spread, LEAST_DEVIATION)
    return deviations


def assess(
    steps: Sequence[Step],
    *,
    warmup_steps: int,
    nll_initial: float,
    nll: float,
    weights_finite: bool,
    accuracy: float,
    majority_share: float,
) -> Stability:
    """The worst of what happened to a run.

    `nll` and `nll_initial` are validation nats a label token after and before training, `accuracy` the validation
    accuracy, `majority_share` what always answering the most frequent intent would score there.
    """
    spikes, judged = find_spikes(steps, warmup_steps=warmup_steps)
    score = len(spikes) / judged if judged else None
    for step in steps:
        for series in ("loss", "grad_norm"):
            if not math.isfinite(value := getattr(step, series)):
                return Stability(Verdict.DIVERGED, step.index, series, value, score)
    if not weights_finite:
        return Stability(Verdict.DIVERGED, None, "weights", math.nan, score)
    if not math.isfinite(nll_initial):
        return Stability(Verdict.DIVERGED, None, "val_nll_initial", nll_initial, score)
    if not math.isfinite(nll) or nll >= nll_initial:
        return Stability(Verdict.DIVERGED, None, "val_nll", nll, score)
    if accuracy <= majority_share:
        return Stability(Verdict.COLLAPSED, None, "accuracy", accuracy, score)
    if spikes:
        return Stability(Verdict.SPIKY, spikes[0].step, spikes[0].series, spikes[0].value, score)
    return Stability(Verdict.STABLE, spike_score=score)

"""The verdict on one run, with what triggered it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray
from scipy.stats import entropy

from ftmatrix.records import CellResult, Evaluation, Stability, Step, Verdict
from ftmatrix.statistics import share_interval

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

LEAST_GAIN = 0.1
"""Accuracy over the most frequent intent's share that the fewest validation messages have to tell from none."""
LEAST_JUDGED_STEPS = 8
"""A shorter run shows no damage: its loss says too little."""
LEAST_SMOOTHED, MOST_SMOOTHED = 8, 32
"""Steps that the loss is averaged over: a tenth of the run, within these, but at most a third of the run."""
RISE_DEVIATIONS = 4.0
"""Standard deviations of a difference of two averages that make a rise."""
LEAST_RISE = 0.1
"""The least rise, in log-loss: about 10 %."""
ONE_ANSWER = 0.9
"""Share of the answers within the label set from which on they are one answer."""
FREQUENCIES_ALONE = 1.2
"""Times the loss that label frequencies alone give, up to which a loss counts as that."""


@dataclass(frozen=True)
class Spike:
    """A step that stands out: `value` is the raw loss or gradient norm."""

    step: int
    series: str
    value: float


def find_spikes(steps: Sequence[Step], *, warmup_steps: int) -> tuple[list[Spike], int]:
    """Spikes in log-loss or log-gradient-norm, and how many steps were judged.

    A step is judged against the median and MAD of up to `WINDOW_STEPS` finite steps before it; warm-up steps are
    neither judged nor part of a window. The last batch of an epoch may hold fewer messages than the others: its norm is
    then larger, and its loss varies more, by up to the square root of how many times fewer, which makes no spike.

    References:
        OLMo 2 (2025), arXiv:2501.00656, section 3: spikes of 7 standard deviations over a trailing window; here on
        a log scale and with robust estimates, because the raw loss of short runs gave false alarms.
    """
    after = [step for step in steps if step.index >= warmup_steps]
    if len(after) <= LEAST_HISTORY_STEPS:
        return [], 0
    spikes: dict[int, Spike] = {}
    judged = numpy.zeros(len(after), dtype=bool)
    label_tokens = numpy.array([step.label_tokens for step in after], dtype=float)
    fewer = numpy.sqrt(numpy.maximum(numpy.median(label_tokens) / numpy.maximum(label_tokens, 1.0), 1.0))
    for series in ("loss", "grad_norm"):
        values = numpy.array([getattr(step, series) for step in after], dtype=float)
        deviations = _deviations(values / fewer) if series == "grad_norm" else _deviations(values) / fewer
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
    batch_size: int,
    nll_initial: float,
    validation: Evaluation,
    weights_finite: bool,
) -> Stability:
    """The worst of what happened to a run.

    `nll_initial` is the validation NLL before training, in nats per label token, `validation` the scores after it.
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
    if not math.isfinite(validation.nll) or validation.nll >= nll_initial:
        return Stability(Verdict.DIVERGED, None, "val_nll", validation.nll, score)
    losses, label_tokens = [step.loss for step in steps], [step.label_tokens for step in steps]
    found = judge_learning(validation, losses, label_tokens, batch_size=batch_size, nll_initial=nll_initial)
    if spikes and found.verdict in (Verdict.STABLE, Verdict.UNDECIDED):
        return Stability(Verdict.SPIKY, spikes[0].step, spikes[0].series, spikes[0].value, score)
    return replace(found, spike_score=score)


def judge_learning(
    validation: Evaluation,
    losses: Sequence[float],
    label_tokens: Sequence[float],
    *,
    batch_size: int,
    nll_initial: float,
) -> Stability:
    """Whether a run has learned (then it is stable so far), has not, or can't be told to by so few messages.

    `losses` are nats per label token, `label_tokens` are counted, both step by step.
    """
    learned = has_learned(validation)
    if learned is None:
        return Stability(Verdict.UNDECIDED, None, "accuracy", validation.accuracy)
    if learned:
        return Stability(Verdict.STABLE)
    return why_not_learned(losses, validation, nll_initial, float(numpy.median(label_tokens)) / batch_size)


def has_learned(validation: Evaluation) -> bool | None:
    """Whether a run does better than always giving the most frequent intent; None where so few messages can't tell.

    An answer that begins with the right label and doesn't end there shows it too: not to stop is another fault. Few
    messages can't tell where the share's interval holds what that would score and reaches `LEAST_GAIN` beyond it.
    """
    labels = Counter(prediction.label for prediction in validation.predictions)
    majority = max(labels.values()) / labels.total()
    hits = sum(prediction.correct or prediction.begins == prediction.label for prediction in validation.predictions)
    interval = share_interval(hits, labels.total())
    if (interval.low or 0.0) <= majority < (interval.high or 1.0) - LEAST_GAIN:
        return None
    return interval.estimate > majority


def why_not_learned(
    losses: Sequence[float], validation: Evaluation, nll_initial: float, tokens_a_label: float
) -> Stability:
    """What keeps a run from doing better than the most frequent intent: it broke (collapsed), or has yet to learn.

    It broke where the loss, smoothed, rose from its lowest value by more than its noise; or where nearly all answers
    within the label set are one label, and the loss of the second half never left what the label frequencies alone
    give. `losses` are nats per label token, step by step.
    """
    curve = numpy.asarray(losses, dtype=float)
    if len(curve) >= LEAST_JUDGED_STEPS:
        rise = find_rise(curve, nll_initial)
        if rise is not None:
            return Stability(Verdict.COLLAPSED, rise, "loss", float(curve[rise]))
        answers = Counter(prediction.answer for prediction in validation.predictions if prediction.valid)
        share = max(answers.values()) / answers.total() if answers else 0.0
        highest = max(float(numpy.median(quarter)) for quarter in numpy.array_split(curve, 4)[2:])
        if share >= ONE_ANSWER and highest <= FREQUENCIES_ALONE * frequency_nll(validation) / tokens_a_label:
            return Stability(Verdict.COLLAPSED, None, "one_answer", share)
    return Stability(Verdict.NOT_LEARNED, None, "accuracy", validation.accuracy)


def _deviation(values: NDArray[numpy.float64]) -> float:
    """Robust standard deviation."""
    return MAD_TO_DEVIATION * float(numpy.median(numpy.abs(values - numpy.median(values))))


def frequency_nll(validation: Evaluation) -> float:
    """Nats per label that knowing the label frequencies alone costs: their entropy, corrected for few messages.

    References:
        Miller (1955), Note on the bias of information estimates.
    """
    counts = numpy.array(list(Counter(prediction.label for prediction in validation.predictions).values()))
    corrected = float(entropy(counts)) + (len(counts) - 1) / (2 * counts.sum())
    return float(min(corrected, math.log(len(validation.intents))))


def find_rise(losses: NDArray[numpy.float64], start: float) -> int | None:
    """The step at whose end the smoothed loss stood highest above its lowest value so far, if that is no noise.

    `start` is the loss before the first step.
    """
    logs = numpy.log(numpy.maximum(losses, LEAST_VALUE))
    width = min(max(len(logs) // 10, LEAST_SMOOTHED), MOST_SMOOTHED, len(logs) // 3)
    smooth = numpy.lib.stride_tricks.sliding_window_view(logs, width).mean(axis=1)
    lowest = numpy.minimum.accumulate(numpy.concatenate([[math.log(max(start, LEAST_VALUE))], smooth]))[:-1]
    noise = max(_deviation(half) for half in numpy.array_split(numpy.diff(logs), 2)) / math.sqrt(2)
    rises = smooth - lowest
    at = int(rises.argmax())
    limit = max(RISE_DEVIATIONS * noise * math.sqrt(2 / width), LEAST_RISE)
    return at + width - 1 if rises[at] > limit else None


def may_be_outdated(stability: Stability, *, epoch_steps: int) -> bool:
    """Whether a verdict may be one of the older rules.

    They called a low accuracy alone a collapse, and the last batch of an epoch a spike for being small. `epoch_steps`
    is how many steps an epoch has.
    """
    if stability.verdict is Verdict.SPIKY:
        return stability.step is not None and (stability.step + 1) % epoch_steps == 0
    return stability.verdict is Verdict.COLLAPSED and stability.series == "accuracy"


def judged_anew(result: CellResult, steps: Sequence[Step], *, warmup_steps: int, batch_size: int) -> CellResult:
    """A result with its verdict by today's rules, from its steps (their losses, norms and label tokens)."""
    if result.validation is None or result.val_nll_initial is None:
        return result
    found = assess(
        steps,
        warmup_steps=warmup_steps,
        batch_size=batch_size,
        nll_initial=result.val_nll_initial,
        validation=result.validation,
        weights_finite=True,
    )
    return replace(result, stability=found)

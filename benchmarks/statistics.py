"""How often the intervals hold the truth, how often a healthy run is flagged, and how often a broken one is caught.

Everything is simulated with known truth: five seeds, rates four times apart, and step noise as measured on real runs.
"""

import math
from collections.abc import Callable, Sequence

import numpy
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ftmatrix.cell import score
from ftmatrix.cell.stability import assess, find_spikes
from ftmatrix.records import Prediction, Step, Verdict
from ftmatrix.statistics import Interval, mean_interval, share_interval
from ftmatrix.study import Sample, rate_ratio
from ftmatrix.study.answers import interval_of
from ftmatrix.study.rates import width_difference

Matrix = NDArray[numpy.float64]

SEEDS = 5
RATES = numpy.array([2.5e-4 * 4.0**index for index in range(7)])
STEPS = 300
INTENTS = tuple(f"intent_{index}" for index in range(77))
MESSAGES = 310
START = 5.0
"""Nats a label token before training."""
LABEL_TOKENS = 4


def main() -> None:
    console = Console()
    console.print(_table("Intervals of 95 %: share that holds the truth", COVERAGE, 400))
    console.print(_table("Healthy runs that are flagged", FALSE_ALARMS, 1000))
    console.print(_table("Planted instability that is caught", CAUGHT, 300))
    console.print(_table("Runs that end no better than one intent, and are taken for the other kind", MISTAKEN, 1000))


def _table(title: str, simulations: dict[str, Callable[[Generator], bool]], count: int) -> Table:
    table = Table("what", "share %", f"of {count}", title=title, title_justify="left")
    for name, happens in simulations.items():
        random = numpy.random.default_rng(0)
        hits = sum(happens(random) for _ in range(count))
        table.add_row(name, f"{100 * hits / count:.1f}", str(hits))
    return table


def holds(interval: Interval, truth: float) -> bool:
    """Whether an interval is there and holds the truth."""
    return interval.low is not None and interval.high is not None and interval.low <= truth <= interval.high


def mean_accuracy(random: Generator) -> bool:
    return holds(mean_interval(random.normal(0.8, 0.02, SEEDS).tolist()), 0.8)


def skewed_mean(random: Generator) -> bool:
    """Seeds that now and then do much worse, as near an edge of stability."""
    return holds(mean_interval((0.8 - random.exponential(0.02, SEEDS)).tolist()), 0.78)


def share_of_messages(random: Generator) -> bool:
    return holds(share_interval(int(random.binomial(500, 0.9)), 500), 0.9)


def difference_of_methods(random: Generator) -> bool:
    """Two methods, the second two points worse, with seeds that vary by a point and messages unlike in difficulty."""
    chance = random.beta(4, 1, 500)
    levels = [0.0, -0.02]
    right = [
        random.random((SEEDS, 500)) < numpy.clip(chance + level + random.normal(0, 0.01, (SEEDS, 1)), 0, 1)
        for level in levels
    ]
    low, high = interval_of(right[0].astype(float) - right[1])
    truth = float((numpy.clip(chance, 0, 1) - numpy.clip(chance - 0.02, 0, 1)).mean())
    return low <= truth <= high


def arm(random: Generator, peak: float, edge: float) -> Sample:
    """Accuracy falls with the squared distance from the peak; each seed breaks down above an edge of its own."""
    logs = numpy.log10(RATES)[:, None]
    accuracy = 0.8 - 0.05 * (logs - peak) ** 2 + random.normal(0, 0.01, (len(RATES), SEEDS))
    unstable = (logs > edge + random.normal(0, 0.05, SEEDS)).astype(float)
    ones = numpy.ones_like(accuracy)
    return Sample(RATES, accuracy, 1 - accuracy, 3 * ones, unstable, 0 * ones)


def best_rate_ratio(random: Generator) -> bool:
    peaks = random.uniform(-2.8, -1.2, 2)
    first, second = (arm(random, peak, edge=9.0) for peak in peaks)
    return holds(rate_ratio(first, second), 10 ** (peaks[0] - peaks[1]))


def window_width(random: Generator) -> bool:
    """Windows between the rate where accuracy falls under 90 % of the best, and each arm's edge of stability."""
    peaks, edges = random.uniform(-2.2, -1.8, 2), random.uniform(-1.4, -0.4, 2)
    first, second = (arm(random, peak, edge) for peak, edge in zip(peaks, edges, strict=True))
    fall = math.sqrt(0.1 * 0.8 / 0.05)
    widths = [min(edge, peak + fall) - (peak - fall) for peak, edge in zip(peaks, edges, strict=True)]
    found = width_difference(first, second)
    return found.low is None or holds(found, widths[0] - widths[1])  # an open window is no answer, and no wrong one


def curve(noise: Matrix) -> Matrix:
    """A series that falls from 3 to about 0.1, most of it in the first half."""
    return (0.1 + 3 * numpy.exp(-numpy.arange(STEPS) / (STEPS / 4))) * numpy.exp(noise)


def flagged(losses: Matrix, norms: Matrix) -> bool:
    steps = [Step(i, 1e-3, float(a), float(b), 1, 1, 0.1) for i, (a, b) in enumerate(zip(losses, norms, strict=True))]
    return bool(find_spikes(steps, warmup_steps=STEPS // 20)[0])


def healthy(deviation: float, tails: float | None = None) -> Callable[[Generator], bool]:
    """A run whose log-loss varies so much from step to step; `tails` are Student's degrees of freedom."""

    def simulate(random: Generator) -> bool:
        draws = [random.normal(size=STEPS) if tails is None else random.standard_t(tails, STEPS) for _ in range(2)]
        return flagged(*(curve(deviation * draw) for draw in draws))

    return simulate


def planted(deviation: float, times: float, steps: int) -> Callable[[Generator], bool]:
    """A gradient norm that is so many times too large for some steps, at a random place behind the first."""

    def simulate(random: Generator) -> bool:
        losses, norms = (curve(deviation * random.normal(size=STEPS)) for _ in range(2))
        at = int(random.integers(60, STEPS - 10))
        norms[at : at + steps] *= times
        return flagged(losses, norms)

    return simulate


def slow(steps: int, deviation: float) -> Callable[[Generator], bool]:
    """A run with too low a rate that is called anything but not learned: its loss comes down by a tenth to nine tenths.

    Its answers are no labels, or different ones.
    """

    def simulate(random: Generator) -> bool:
        fall = random.uniform(0.1, 0.9) ** (numpy.arange(steps) / steps)
        losses = START * fall * numpy.exp(deviation * random.normal(size=steps))
        return _verdict(random, losses, _any_answers(random), float(fall[-1]) * START) is not Verdict.NOT_LEARNED

    return simulate


def broken(steps: int, deviation: float) -> Callable[[Generator], bool]:
    """A run that broke somewhere in its first four fifths, and isn't called collapsed.

    Half of them are thrown back by half to all of what they had gained, and answer anything; the others go to what
    the label frequencies alone give within the first half, and give one answer.
    """

    def simulate(random: Generator) -> bool:
        known = math.log(len(INTENTS)) / LABEL_TOKENS
        losses = known + (START - known) * 0.5 ** (numpy.arange(steps) / (steps / 20))
        if back := random.random() < 0.5:
            losses *= 0.3  # it had begun to learn
            at = int(random.integers(steps // 5, 4 * steps // 5))
            losses[at:] = losses[at] + random.uniform(0.5, 1) * (0.3 * START - losses[at])
        answers = _any_answers(random) if back else [INTENTS[0]] * MESSAGES
        noisy = losses * numpy.exp(deviation * random.normal(size=steps))
        return _verdict(random, noisy, answers, float(losses[-1])) is not Verdict.COLLAPSED

    return simulate


def learned(steps: int, deviation: float) -> Callable[[Generator], bool]:
    """A run that has learned, half of its answers right, and is called not learned or collapsed."""

    def simulate(random: Generator) -> bool:
        losses = curve(deviation * random.normal(size=STEPS))[:: STEPS // steps]
        return _verdict(random, losses, None, 0.5) in (Verdict.NOT_LEARNED, Verdict.COLLAPSED)

    return simulate


def _any_answers(random: Generator) -> list[str]:
    return [str(answer) for answer in random.choice([*INTENTS, "nonsense"], size=MESSAGES)]


def _verdict(random: Generator, losses: Matrix, answers: Sequence[str] | None, nll: float) -> Verdict:
    """What a run comes to: its answers, or (None) half of them right."""
    labels = [INTENTS[index % len(INTENTS)] for index in range(MESSAGES)]
    said = answers if answers is not None else [label if random.random() < 0.5 else "nonsense" for label in labels]
    predictions = [
        Prediction("", label, answer, answer, answer in INTENTS, nll)
        for label, answer in zip(labels, said, strict=True)
    ]
    if answers is not None:  # by luck alone some are better than one intent in all
        predictions = [one for one in predictions if not one.correct] or predictions[:1]
    validation = score("validation", predictions, nll=nll, labels=INTENTS, common=frozenset(INTENTS), pair=None)
    steps = [Step(index, 1e-3, float(loss), 1.0, 1, LABEL_TOKENS, 0.1) for index, loss in enumerate(losses)]
    found = assess(steps, warmup_steps=0, batch_size=1, nll_initial=START, validation=validation, weights_finite=True)
    return found.verdict


COVERAGE: dict[str, Callable[[Generator], bool]] = {
    "mean over 5 seeds (Student's t)": mean_accuracy,
    "the same, seeds skewed downwards": skewed_mean,
    "accuracy over 500 messages (Wilson)": share_of_messages,
    "difference of two methods (bootstrap over seeds and messages)": difference_of_methods,
    "ratio of best rates (bootstrap over seeds, and the grid's spacing)": best_rate_ratio,
    "difference of window widths (the same)": window_width,
}
FALSE_ALARMS = {
    "noise 0.13, as LoRA at a low rate": healthy(0.13),
    "noise 0.35": healthy(0.35),
    "noise 0.7, as full fine-tuning at a high rate": healthy(0.7),
    "noise 0.35, tails of Student's t with 10 degrees": healthy(0.35, 10),
    "noise 0.35, tails of Student's t with 5 degrees": healthy(0.35, 5),
}
CAUGHT = {
    f"noise {deviation:g}, gradient norm {times} times for {steps} step(s)": planted(deviation, times, steps)
    for deviation, many in ((0.13, (4, 16, 64)), (0.35, (16, 64, 256)))
    for times in many
    for steps in (1, 5)
}
MISTAKEN = {
    f"{kind.__name__}, {steps} steps, noise {deviation:g}": kind(steps, deviation)
    for kind in (learned, slow, broken)
    for steps in (30, 300)
    for deviation in (0.13, 0.35)
}

if __name__ == "__main__":
    main()

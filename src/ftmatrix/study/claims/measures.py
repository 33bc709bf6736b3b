"""Claims about accuracy, confusion and memory: C4, C5 and C6 of the finding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy

from ftmatrix.statistics import Interval, share_interval
from ftmatrix.study.answers import Results
from ftmatrix.study.claims.base import Claim, Evidence, OpenQuestionError, enough
from ftmatrix.study.comparison import Curve, Point


@dataclass(frozen=True, kw_only=True)
class AccuracyAtLeast(Claim):
    """A test accuracy reaches a threshold (C4). The interval is the wider of those over seeds and over messages."""

    metric: str = "accuracy_common"
    threshold: float = 0.96
    least_runs: int = 3

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        enough(point, self.least_runs)
        messages = point.values("messages_common" if self.metric == "accuracy_common" else "messages")
        if not messages:
            raise OpenQuestionError("the runs don't say how many messages they were tested on")
        seeds = point.mean(self.metric)
        interval = seeds.hull(share_interval(seeds.estimate * messages[0], round(messages[0])))
        if interval.low is None or interval.high is None:
            raise OpenQuestionError("too few runs for an interval")
        low, high = max(0.0, interval.low), min(1.0, interval.high)
        return Evidence(
            says=(
                f"{seeds.estimate:.1%} at lr={point.lr:g} (95 % interval {low:.1%} to {high:.1%}, {seeds.n} seeds, "
                f"{messages[0]:.0f} messages)"
            ),
            numbers={self.metric: seeds.estimate, "low": low, "high": high, "runs": seeds.n},
            supports=low >= self.threshold,
            contradicts=high < self.threshold,
        )


@dataclass(frozen=True)
class PairShare:
    """Of both intents' errors in a run, the share that falls on the other; counts are means over the seeds."""

    intents: tuple[str, str]
    share: Interval


@dataclass(frozen=True, kw_only=True)
class MostConfusedPair(Claim):
    """A named pair of intents is the one that is most confused (C5)."""

    pair: tuple[str, str]
    contradicted_below: int = 5
    """Rank behind which the claim is contradicted."""
    least_runs: int = 3
    least_errors: int = 5
    """Errors a run, on average, that a pair needs to be ranked."""

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        enough(point, self.least_runs)
        every = rank_pairs(point, results)
        named = next((pair for pair in every if set(pair.intents) == set(self.pair)), None)
        if named is None:
            raise OpenQuestionError(f"{' / '.join(self.pair)}: no such pair among the intents")
        mine = named.share
        others = [pair for pair in every if pair is not named and pair.share.n >= self.least_errors]
        ahead = [pair for pair in others if pair.share.estimate > mine.estimate]
        rival = f"; {' / '.join(others[0].intents)} {others[0].share.estimate:.0%}" if others else ""
        seeds = sum(results(row).test is not None for row in point.runs)
        said = f"{mine.estimate:.0%} of {mine.n} errors a run fall on the other{rival} (mean of {seeds} seeds)"
        numbers = {"share": mine.estimate, "low": mine.low, "high": mine.high, "errors": mine.n, "runs": seeds}
        if mine.n < self.least_errors:  # too few for a rank; but others may be clear of whatever it is
            clear = [pair for pair in ahead if (pair.share.low or 0.0) > (mine.high or 0.0)]
            if len(clear) < self.contradicted_below:
                raise OpenQuestionError(f"{said}; a rank takes {self.least_errors}", errors=mine.n, runs=seeds)
            return Evidence(f"{len(clear)} pairs are confused more: {said}", numbers, supports=False, contradicts=True)
        rank = len(ahead) + 1
        return Evidence(
            says=f"rank {rank} of {len(others) + 1} pairs: {said}",
            numbers={"rank": rank, **numbers},
            supports=rank == 1 and all(not mine.overlaps(pair.share) for pair in others),
            contradicts=rank > self.contradicted_below,
        )


@dataclass(frozen=True, kw_only=True)
class MemoryMultiple(Claim):
    """Training holds so many times the weights, activations apart (C6)."""

    supported_from: float = 3.5
    supported_to: float = 4.5
    least_runs: int = 1

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        enough(point, self.least_runs)
        multiples = []
        for row in point.runs:
            weights, *others = (row.metric(name) for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes"))
            known = [part for part in others if part is not None]
            if weights and len(known) == len(others):
                multiples.append(1 + sum(known) / weights)
        if not multiples:
            raise OpenQuestionError("the runs don't say what their memory is made of")
        multiple = max(multiples)
        peaks = [peak / weights for row in point.runs if (peak := row.metric("peak_bytes_train"))
                 and (weights := row.metric("weight_bytes"))]  # fmt: skip
        measured = f"; the measured peak, activations included, is {max(peaks):.2f} times" if peaks else ""
        return Evidence(
            says=f"weights, gradients and optimizer state are {multiple:.2f} times the weights{measured}",
            numbers={"multiple": multiple, "peak_multiple": max(peaks, default=None), "runs": len(multiples)},
            supports=self.supported_from <= multiple <= self.supported_to,
            contradicts=not self.supported_from <= multiple <= self.supported_to,
        )


def rank_pairs(point: Point, results: Results) -> list[PairShare]:
    """Pairs of intents by the share of their errors that falls on the other, the most confused first.

    Counts are means over the seeds, because the same messages are asked of each: more seeds are no more messages.
    """
    evaluations = [found.test for row in point.runs if (found := results(row)).test is not None]
    if not evaluations:
        raise OpenQuestionError("no run has a confusion matrix")
    intents = [score.intent for score in evaluations[0].intents]
    confusion = numpy.mean([numpy.array(evaluation.confusion) for evaluation in evaluations], axis=0)
    errors = (confusion.sum(axis=1) - confusion.diagonal()).tolist()
    ranked = []
    for i, j in combinations(range(len(intents)), 2):
        total = errors[i] + errors[j]
        crossed = float(confusion[i][j] + confusion[j][i])
        first, second = sorted((intents[i], intents[j]))
        share = share_interval(crossed, round(total)) if round(total) else Interval(0.0, None, None, 0)
        ranked.append(PairShare((first, second), replace(share, estimate=crossed / total if total else 0.0)))
    return sorted(ranked, key=lambda pair: -pair.share.estimate)

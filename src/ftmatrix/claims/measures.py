"""Claims about accuracy, confusion and memory: C4, C5 and C6 of the finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy

from ftmatrix.answers import Results
from ftmatrix.claims.base import Claim, Evidence, OpenQuestionError, enough
from ftmatrix.comparison import Curve, Point
from ftmatrix.statistics import Interval, share_interval


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
    least_errors: int = 5
    """Errors a run, on average, that a pair needs to be ranked."""

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        ranked = rank_pairs(point, results, self.least_errors)
        names = [pair.intents for pair in ranked]
        first, second = sorted(self.pair)
        if (named := (first, second)) not in names:
            raise OpenQuestionError(f"{' / '.join(self.pair)}: fewer than {self.least_errors} errors a run to judge by")
        rank = names.index(named)
        other = ranked[1 if rank == 0 else 0] if len(ranked) > 1 else None
        mine = ranked[rank].share
        rival = f"; {' / '.join(other.intents)} {other.share.estimate:.0%}" if other else ""
        return Evidence(
            says=(
                f"rank {rank + 1} of {len(ranked)} pairs: {mine.estimate:.0%} of {mine.n} errors a run fall on the "
                f"other{rival} (mean of {len(point.runs)} seeds)"
            ),
            numbers={"rank": rank + 1, "share": mine.estimate, "low": mine.low, "high": mine.high},
            supports=rank == 0 and (other is None or not mine.overlaps(other.share)),
            contradicts=rank >= self.contradicted_below,
        )


@dataclass(frozen=True, kw_only=True)
class MemoryMultiple(Claim):
    """Training holds so many times the weights, activations apart (C6)."""

    supported_from: float = 3.5
    supported_to: float = 4.5

    def weigh(self, arms: Sequence[Curve], results: Results) -> Evidence:
        point = self.cells.point(arms)
        multiples = []
        for row in point.runs:
            parts = [row.metric(name) for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes")]
            if parts[0]:
                multiples.append(sum(part or 0.0 for part in parts) / parts[0])
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


def rank_pairs(point: Point, results: Results, least_errors: float) -> list[PairShare]:
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
        if (total := errors[i] + errors[j]) >= least_errors:
            crossed = float(confusion[i][j] + confusion[j][i])
            first, second = sorted((intents[i], intents[j]))
            share = share_interval(round(crossed), max(1, round(total)))
            ranked.append(PairShare((first, second), Interval(crossed / total, share.low, share.high, round(total))))
    return sorted(ranked, key=lambda pair: -pair.share.estimate)

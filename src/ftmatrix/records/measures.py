"""What is measured, or forecast, of a run."""

import math
from dataclasses import dataclass

from ftmatrix.records.outcomes import Verdict


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    `loss` is the mean negative log-likelihood in nats over the step's label tokens, `grad_norm` the global L2 norm
    before clipping, `tokens` the non-padding tokens, `seconds` device-synchronised wall time.
    """

    index: int
    lr: float
    loss: float
    grad_norm: float
    tokens: int
    label_tokens: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether the step could be applied. One that couldn't is the last: nothing after it could recover."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class PhasePeak:
    """Peak memory of one phase. `counts` says what the bytes are; a peak that can't be known is None, never 0."""

    phase: str
    peak_bytes: int | None
    counts: str
    reserved_bytes: int | None = None


@dataclass(frozen=True)
class Stability:
    """Verdict of a run, with what triggered it: a step (None: the end of the run), a series and its value.

    `spike_score` is None where the run was too short for a trailing window.
    """

    verdict: Verdict
    step: int | None = None
    series: str | None = None
    value: float | None = None
    spike_score: float | None = None


@dataclass(frozen=True)
class WeightDrift:
    """‖W - W0‖F / ‖W0‖F over the merged weights: over all of them, and by kind of matrix (q_proj, embed_tokens, …)."""

    total: float
    by_kind: dict[str, float]


@dataclass(frozen=True)
class Forgetting:
    """What training cost on general text: nats per token before and after it."""

    nll_initial: float
    nll: float

    @classmethod
    def between(cls, before: float | None, after: float | None) -> "Forgetting | None":
        """What two measurements say; None where one is missing."""
        return None if before is None or after is None else cls(before, after)

    @property
    def ratio(self) -> float:
        """Perplexity after training over perplexity before: 1 where nothing was forgotten."""
        return math.exp(min(self.nll - self.nll_initial, 700.0))  # beyond that a float ends

    @property
    def retention(self) -> float:
        """The inverse of `ratio`."""
        return 1 / self.ratio


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of what training holds from step to step: all weights, the gradients, the optimizer's state."""

    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True)
class Forecast:
    """Peak memory that training is expected to reach, and evaluation (None: not foretold).

    Training holds `parts` throughout; the rest comes and goes.
    """

    peak_bytes: int
    parts: MemoryParts
    evaluate_bytes: int | None = None
    is_bound: bool = False
    """Whether that is the most that it may reach, because what it needs beside its tensors varies by more."""

    @property
    def most_bytes(self) -> int:
        """What the cell has to have."""
        return max(self.peak_bytes, self.evaluate_bytes or 0)


@dataclass(frozen=True)
class Durations:
    """Seconds spent apart; `setup` is everything before the first evaluation."""

    setup: float
    train: float
    evaluate: float

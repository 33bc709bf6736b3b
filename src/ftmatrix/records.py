"""The frozen facts that flow from a cell to its report, and their JSON."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class Outcome(StrEnum):
    """How a cell ended. Only `COMPLETED` has a result; every other outcome carries its reason."""

    COMPLETED = "completed"
    OUT_OF_MEMORY = "out of memory"
    WONT_FIT = "won't fit"
    UNSUPPORTED = "unsupported"
    GATED = "gated model"
    MISSING_MODEL = "missing model"
    BAD_DATA = "bad data"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


class Verdict(StrEnum):
    """Stability of a completed run, from best to worst."""

    STABLE = "stable"
    UNDECIDED = "undecided"
    """Too few validation messages to say whether anything was learned."""
    NOT_LEARNED = "not_learned"
    """No better than the most frequent intent, and no sign of damage: too low a rate or too few steps."""
    SPIKY = "spiky"
    COLLAPSED = "collapsed"
    DIVERGED = "diverged"

    @property
    def is_unstable(self) -> bool:
        """Whether something broke. Too little isn't broken."""
        return self in (Verdict.SPIKY, Verdict.COLLAPSED, Verdict.DIVERGED)


class Phase(StrEnum):
    """What a running cell is doing."""

    LOAD = "load"
    TRAIN = "train"
    EVALUATE = "evaluate"

    @property
    def doing(self) -> str:
        """The phase as it stands behind "while"."""
        return {Phase.LOAD: "loading", Phase.TRAIN: "training", Phase.EVALUATE: "evaluating"}[self]


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
class Prediction:
    """One message and its answers: `answer` is the freely generated text, `constrained` a member of the label set."""

    text: str
    label: str
    answer: str
    constrained: str
    valid: bool
    nll: float
    """Mean negative log-likelihood in nats of the gold label's tokens."""
    begins: str | None = None
    """The label with which an answer outside the label set begins that didn't end there."""

    @property
    def correct(self) -> bool:
        return self.valid and self.answer == self.label


@dataclass(frozen=True)
class IntentScore:
    """Figures of one intent; `support` counts its messages."""

    intent: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class PairConfusion:
    """Share of two intents' errors that fall on the other, with a 95 % Wilson interval (None without errors)."""

    intents: tuple[str, str]
    errors: int
    crossed: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """Scores over one split. Rates and accuracies lie in [0, 1]; `nll` is nats a label token.

    `confusion[i][j]` counts messages of intent i answered as intent j; the last column is "invalid".
    """

    split: str
    messages: int
    accuracy: float
    accuracy_constrained: float
    accuracy_common: float
    common_intents: int
    invalid_rate: float
    macro_f1: float
    nll: float
    intents: tuple[IntentScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    pair: PairConfusion | None
    predictions: tuple[Prediction, ...]
    common_messages: int | None = None
    unended_rate: float | None = None
    """Share of the answers that begin with a label and don't end there."""
    scores: dict[str, float] = field(default_factory=dict)
    """Those of `ftmatrix.scores`, by name."""


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
    """What training cost on general text: nats a token before and after it."""

    nll_initial: float
    nll: float

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


@dataclass(frozen=True)
class CellResult:
    """What a cell came to. Every field but `outcome` and `reason` may be missing where the cell ended early."""

    outcome: Outcome
    reason: str | None = None
    phase: Phase | None = None
    """What the cell was doing when it ended early."""
    stability: Stability | None = None
    val_nll_initial: float | None = None
    validation: Evaluation | None = None
    test: Evaluation | None = None
    peaks: tuple[PhasePeak, ...] = ()
    seconds: Durations | None = None
    steps: int = 0
    tokens_per_second: float | None = None
    neighbour_cores: float | None = None
    """CPU cores that other processes kept busy while the cell trained; None on other devices."""
    parameters: int | None = None
    trainable_parameters: int | None = None
    memory: MemoryParts | None = None
    forecast: Forecast | None = None
    drift: WeightDrift | None = None
    forgetting: Forgetting | None = None
    device: str | None = None
    precision: str | None = None
    notes: tuple[str, ...] = ()


Record = TypeVar("Record")


def to_json(record: object) -> str:
    """A record as JSON. Non-finite numbers are written as NaN and Infinity, by name."""
    return json.dumps(dataclasses.asdict(record), indent=1)  # type: ignore[call-overload]


def from_json(kind: type[Record], text: str) -> Record:
    """The record that `to_json` wrote.

    Raises:
        pydantic.ValidationError: the text holds no such record.
    """
    record: Record = _reader(kind).validate_python(json.loads(text))  # type: ignore[arg-type]
    return record


@cache
def _reader(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)

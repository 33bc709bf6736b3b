"""The answers to a split's messages, and their scores."""

from dataclasses import dataclass, field


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
    """Scores over one split. Rates and accuracies lie in [0, 1]; `nll` is nats per label token.

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
    """Those of `ftmatrix.cell.scores`, by name."""

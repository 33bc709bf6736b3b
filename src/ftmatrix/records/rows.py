"""A cell as a comparison sees it: one row of a table."""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from ftmatrix.records.outcomes import Outcome, Verdict


@dataclass(frozen=True)
class Row:
    """A cell as the store knows it: what a comparison table is made of. Metrics and settings are named as in MLflow."""

    run_id: str
    method: str
    model: str
    data: str
    lr: float
    seed: int
    outcome: Outcome
    reason: str | None
    stability: str | None
    metrics: dict[str, float]
    settings: dict[str, str]
    facts: dict[str, str] = field(default_factory=dict)
    """What the settings came to: device, precision, model commit, data digest, versions."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know: messages cut, a figure unknown, …"""
    keeps_weights: bool = False
    artifact_uri: str = ""
    """Where the run's files are."""

    @property
    def completed(self) -> bool:
        """Whether the cell has a result."""
        return self.outcome is Outcome.COMPLETED

    @property
    def is_unstable(self) -> bool:
        """Whether something broke in the run."""
        return self.stability is not None and Verdict(self.stability).is_unstable

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch of its training; 1 where that isn't known."""
        return max(1, int(self.metrics.get("steps", 0)) // int(self.settings.get("training.epochs", 1)))

    def metric(self, name: str) -> float | None:
        """A metric, or None where the cell never came to it."""
        return self.metrics.get(name)

    def deciding(self, *, but: Container[str] = ()) -> frozenset[tuple[str, str]]:
        """The settings that make the cell what it is, but for these. An unset one is one that older versions lacked."""
        return frozenset((key, value) for key, value in self.settings.items() if key not in but and value != "None")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by data, model, method, rate and seed, as a reader compares them."""
    return sorted(rows, key=lambda row: (row.data, row.model, row.method, row.lr, row.seed))


def best_of(rows: Iterable[Row]) -> Row | None:
    """The cell to choose: highest validation accuracy, ties by the lowest validation NLL, then by the order given.

    Test accuracy is no ground to choose by. None where no cell has a result.
    """
    known = [row for row in rows if row.metric("val_accuracy") is not None]
    return max(known, key=lambda row: (row.metrics["val_accuracy"], -_or_worst(row.metric("val_nll"))), default=None)


def _or_worst(nll: float | None) -> float:
    """An NLL; the worst there is where it is unknown or no number."""
    return math.inf if nll is None or math.isnan(nll) else nll

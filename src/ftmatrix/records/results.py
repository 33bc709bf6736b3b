"""What a cell came to."""

from dataclasses import dataclass

from ftmatrix.records.evaluations import Evaluation
from ftmatrix.records.measures import Durations, Forecast, Forgetting, MemoryParts, PhasePeak, Stability, WeightDrift
from ftmatrix.records.outcomes import Outcome, Phase


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

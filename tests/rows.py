"""Rows of a made-up study, for what reads studies."""

from typing import Any

from ftmatrix.records import Outcome, Row


def row(
    method: str, lr: float, seed: int, accuracy: float = 0.8, stability: str | None = "stable", **changed: Any
) -> Row:
    """A finished run; `changed` overrides fields of the row, and metrics by their names."""
    metrics = {
        "accuracy": accuracy,
        "val_accuracy": accuracy,
        "val_nll": 1.0 - accuracy,
        "val_nll_initial": 3.0,
        "seconds_train": 10.0,
        "peak_bytes_train": 5.0e6,
        "weight_bytes": 1.0e6,
        "gradient_bytes": 1.0e6,
        "optimizer_bytes": 2.0e6,
        "forecast_bytes_train": 5.2e6,
        "forgetting": 1.5,
        "trainable_parameters": 1.0e6,
        "accuracy_common": accuracy,
        "messages": 500.0,
        "messages_common": 200.0,
    }
    fields = Row.__dataclass_fields__
    metrics |= {name: value for name, value in changed.items() if name not in fields}
    axes: dict[str, Any] = {
        "run_id": f"{method}-{lr:g}-{seed}-{changed.get('model', 'pocket-1m')}",
        "method": method,
        "model": "pocket-1m",
        "data": "pocket",
        "lr": lr,
        "seed": seed,
        "outcome": Outcome.COMPLETED,
        "reason": None,
        "stability": stability,
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "settings": {},
    }
    return Row(**(axes | {name: value for name, value in changed.items() if name in fields}))


def failed(method: str, lr: float, seed: int, reason: str = "memory ran out") -> Row:
    """A cell without a result."""
    return row(method, lr, seed, outcome=Outcome.OUT_OF_MEMORY, reason=reason, stability=None, metrics={})


SPREAD = (-0.004, -0.002, 0.0, 0.002, 0.004)
"""How far seeds lie from their mean."""


def arm(method: str, levels: dict[float, tuple[float, str]], *, seeds: int = 5, **changed: Any) -> list[Row]:
    """Runs of one method: mean accuracy and stability by rate."""
    return [
        row(method, lr, seed, level + SPREAD[seed], stability, **changed)
        for lr, (level, stability) in levels.items()
        for seed in range(seeds)
    ]

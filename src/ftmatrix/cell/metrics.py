"""A result's figures under the names that they have in MLflow."""

import math
from dataclasses import fields

from ftmatrix.records import CellResult, Evaluation, Outcome, Phase

STEP_SERIES = ("loss", "grad_norm", "lr", "tokens", "label_tokens", "seconds")
"""Fields of a step that become curves; in MLflow their names begin with `step/`."""


RUN_METRICS = frozenset(
    {
        "tokens_per_second", "neighbour_cores", "parameters", "trainable_parameters", "steps", "spike_score",
        "forecast_error", "weight_drift", "forgetting", "retention", "general_nll", "general_nll_initial",
        "messages_common", "pair_share", "pair_errors", "nll_initial",
    }
)  # fmt: skip
"""Beside the fields of an evaluation, and beside those that `RUN_BEGINNINGS` begin."""
RUN_BEGINNINGS = ("val_", "seconds_", "peak_", "forecast_bytes_", "weight_", "gradient_", "optimizer_", "other_bytes")


def is_taken(name: str) -> bool:
    """Whether every run has a metric of this name, so that no other may have it."""
    own = {entry.name for entry in fields(Evaluation)} | RUN_METRICS
    return name in own or name.startswith(RUN_BEGINNINGS)


def result_metrics(result: CellResult) -> dict[str, float]:
    """The figures of a result under their names in MLflow. What is unknown is left out, never 0."""
    values: dict[str, float | None] = {
        "val_nll_initial": result.val_nll_initial,
        "tokens_per_second": result.tokens_per_second,
        "neighbour_cores": result.neighbour_cores,
        "parameters": result.parameters,
        "trainable_parameters": result.trainable_parameters,
        "steps": result.steps or None,
        "spike_score": result.stability.spike_score if result.stability else None,
    }
    for peak in result.peaks:
        values[f"peak_bytes_{peak.phase}"] = peak.peak_bytes
        values[f"peak_reserved_bytes_{peak.phase}"] = peak.reserved_bytes
    measured = next((peak.peak_bytes for peak in result.peaks if peak.phase == Phase.TRAIN), None)
    if result.forecast:
        values["forecast_bytes_train"] = result.forecast.peak_bytes
        values["forecast_bytes_evaluate"] = result.forecast.evaluate_bytes
        if measured and result.outcome is Outcome.COMPLETED:  # up to a death, a peak is no measurement
            values["forecast_error"] = result.forecast.peak_bytes / measured - 1
    if memory := result.memory:
        values |= {
            "weight_bytes": memory.weight_bytes,
            "gradient_bytes": memory.gradient_bytes,
            "optimizer_bytes": memory.optimizer_bytes,
            "other_bytes": measured - memory.total_bytes if measured and measured > memory.total_bytes else None,
        }
    if result.drift:
        values["weight_drift"] = result.drift.total
        values |= {f"weight_drift/{kind}": drift for kind, drift in result.drift.by_kind.items()}
    if result.forgetting:
        values |= {
            "forgetting": result.forgetting.ratio,
            "retention": result.forgetting.retention,
            "general_nll_initial": result.forgetting.nll_initial,
            "general_nll": result.forgetting.nll,
        }
    if result.seconds:
        values |= {
            "seconds_setup": result.seconds.setup,
            "seconds_train": result.seconds.train,
            "seconds_evaluate": result.seconds.evaluate,
        }
    if result.test:
        values |= _evaluation_metrics(result.test, "")
    if result.validation:
        values |= _evaluation_metrics(result.validation, "val_")
    return {name: float(value) for name, value in values.items() if value is not None}


def _evaluation_metrics(evaluation: Evaluation, prefix: str) -> dict[str, float | None]:
    values: dict[str, float | None] = {
        f"{prefix}{name}": getattr(evaluation, name)
        for name in (
            "accuracy",
            "accuracy_constrained",
            "accuracy_common",
            "macro_f1",
            "invalid_rate",
            "unended_rate",
            "nll",
        )
    }
    values |= {f"{prefix}{name}": value for name, value in evaluation.scores.items() if not math.isnan(value)}
    values |= {f"{prefix}messages": evaluation.messages, f"{prefix}messages_common": evaluation.common_messages}
    if evaluation.pair:
        values |= {f"{prefix}pair_share": evaluation.pair.share, f"{prefix}pair_errors": evaluation.pair.errors}
    return values

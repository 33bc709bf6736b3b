"""The report for programs."""

import dataclasses
import json
import math
from enum import Enum
from typing import Any

from ftmatrix.reporting.summary import ArmSummary, Summary


def as_json(summary: Summary) -> str:
    """The report for a program. What isn't known is null."""
    content = {
        "study": summary.study,
        "cells": len(summary.rows),
        "failed": len(summary.failed),
        "methods": [_arm(arm) for arm in summary.arms],
        "contrasts": summary.contrasts,
        "claims": summary.findings,
        "also_differ_in": [{"where": where, "what": what} for where, what in summary.unfair],
    }
    return json.dumps(_plain(content), indent=1) + "\n"


def _arm(arm: ArmSummary) -> dict[str, Any]:
    context = arm.curve.context
    return {
        "model": context.model,
        "data": context.data,
        "settings": dict(context.settings),
        "method": arm.curve.label,
        "seeds": arm.curve.seeds,
        "best_lr": arm.best.lr if arm.best else None,
        "test_accuracy": arm.best.mean("accuracy") if arm.best else None,
        "window": arm.window,
        "lr_sensitivity_shared": arm.sensitivity_shared,
        "lr_sensitivity_decade": arm.sensitivity_decade,
        "lr_ratio_to_full": arm.rate_ratio,
        "rates": [
            {
                "lr": rate.point.lr,
                "runs": len(rate.point.runs),
                "failed": len(rate.point.failed),
                "unstable": rate.point.unstable,
                "verdicts": {verdict.value: count for verdict, count in rate.point.verdicts.items()},
                "degraded": rate.degraded,
                "test_accuracy": rate.point.mean("accuracy"),
                "validation_accuracy": rate.point.mean("val_accuracy"),
            }
            for rate in arm.rates
        ],
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value

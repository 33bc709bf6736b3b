"""What a report says of a study as a whole: how much there is to go by, and what to doubt."""

from collections import Counter

from ftmatrix.records import Verdict
from ftmatrix.reporting.summary import Summary
from ftmatrix.statistics import LEAST_SEEDS
from ftmatrix.study import SHORT_DIGEST, Answer, data_versions

FEW_MESSAGES = 100
"""Fewer validation messages choose a rate badly: one of them is over a point of accuracy."""
SET_UP = {
    "training.epochs": "epochs",
    "training.batch_size": "batch",
    "training.schedule": "schedule",
    "training.warmup_fraction": "warm-up",
    "training.max_grad_norm": "clipping at",
    "method.r": "adapters of rank",
    "method.alpha": "alpha",
}
"""Settings that a reader has to know, by their names in the report."""


def overall(summary: Summary) -> list[str]:
    """How much there is to go by: cells, failures and claims."""
    lines = [f"{len(summary.rows)} cells"]
    if summary.failed:
        kinds = Counter(row.outcome.value for row in summary.failed)
        lines.append(f"{len(summary.failed)} without a result ({_listed(kinds)})")
    if summary.findings:
        claims = len({finding.claim for finding in summary.findings})
        answers = _listed(Counter(finding.answer.value for finding in summary.findings))
        lines.append(f"{claims} claim{'s' if claims > 1 else ''}, asked of each model: {answers}")
    points = [rate.point for arm in summary.arms for rate in arm.rates]
    if runs := sum(len(point.runs) for point in points):
        verdicts = sum((point.verdicts for point in points), Counter[Verdict]())
        unstable = sum(count for verdict, count in verdicts.items() if verdict.is_unstable)
        lines.append(f"{unstable} of {runs} runs unstable" if unstable else "no run unstable")
        if silent := verdicts[Verdict.NOT_LEARNED]:
            lines.append(f"{silent} learned nothing")
        if open_ones := verdicts[Verdict.UNDECIDED]:
            lines.append(f"{open_ones} undecided, by too few validation messages")
    return [*_versions(summary), "; ".join(lines) + ".", *_set_up(summary), *_measured_on(summary), *_doubts(summary)]


def _versions(summary: Summary) -> list[str]:
    return [
        f"The runs saw {len(digests)} versions of the data {data!r} under the same settings "
        f"({', '.join(digest[:SHORT_DIGEST] for digest in digests)}): they are kept apart; run the older ones again."
        for data, digests in data_versions(summary.rows).items()
    ]


def _set_up(summary: Summary) -> list[str]:
    """What was trained on, and how: settings that all runs share; those that vary stand in the tables."""
    data = sorted({row.data for row in summary.rows})
    shared = []
    for key, name in SET_UP.items():
        values = {row.settings[key] for row in summary.rows if key in row.settings}
        if len(values) == 1:
            shared.append(f"{name} {values.pop()}")
    messages = {row.metric("messages") for row in summary.rows} - {None}
    tested = f", {messages.pop():,.0f} test messages" if len(messages) == 1 else ""
    chosen_by = {row.metric("val_messages") for row in summary.rows} - {None}
    tested += f", {chosen_by.pop():,.0f} validation messages" if len(chosen_by) == 1 else ""
    set_up = f" Set-up: {', '.join(shared)}." if shared else ""
    return [f"Data: {', '.join(data)}{tested}.{set_up}"]


def _measured_on(summary: Summary) -> list[str]:
    """Where the figures come from, by what the runs themselves noted."""
    kinds = {"device": "on", "precision": "in", "version.torch": "torch", "version.transformers": "transformers"}
    found = {kind: sorted({row.facts[kind] for row in summary.rows if kind in row.facts}) for kind in kinds}
    parts = [f"{word} {' and '.join(found[kind])}" for kind, word in kinds.items() if found[kind]]
    counted = sorted({row.facts["memory.counts"] for row in summary.rows if "memory.counts" in row.facts})
    said = [f"Measured {', '.join(parts)}."] if parts else []
    if counted:
        said.append(f"Peak memory is {' or '.join(counted)}.")
    return said


def _doubts(summary: Summary) -> list[str]:
    doubts = []
    validated = [count for row in summary.rows if (count := row.metric("val_messages"))]
    if validated and min(validated) < FEW_MESSAGES:
        few = min(validated)
        doubts.append(
            f"Rates and verdicts go by {few:.0f} validation messages, of which one is {100 / few:.2g} points of "
            "accuracy: more messages, or data.validation_fraction=0.3, choose better."
        )
    fewest = min((len(arm.best.runs) for arm in summary.arms if arm.best), default=LEAST_SEEDS)
    if fewest >= LEAST_SEEDS:
        return doubts
    return [
        *doubts,
        f"{'One seed' if fewest == 1 else 'Two seeds'} cannot tell how much results vary from seed to seed: intervals "
        "cover the choice of messages alone, and a rate is called stable on few runs. Five can: seed=0,1,2,3,4.",
    ]


def _listed(counts: Counter[str]) -> str:
    order = [answer.value for answer in Answer]
    named = sorted(counts.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 0, item[0]))
    return ", ".join(f"{count} {name}" for name, count in named)

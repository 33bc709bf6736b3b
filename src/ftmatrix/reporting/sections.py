"""The report as titles, tables and lines, for whatever writes it out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ftmatrix.records import Verdict
from ftmatrix.reporting.conclusions import conclusions
from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.formats import between, mean_of, spread, window_text
from ftmatrix.reporting.overall import overall
from ftmatrix.reporting.summary import ArmSummary, RateSummary, Summary
from ftmatrix.text import UNKNOWN, mebibytes, percent, seconds

WORST_PAIRS = 5
"""Listed of each method."""


@dataclass(frozen=True)
class Section:
    """A table with its title and what has to be said of it. A column whose title begins with a space is text.

    `part` marks a section that belongs to the one before it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    part: bool = False


def sections(summary: Summary) -> list[Section]:
    """All sections that have something to show, in the order of the report."""
    tables = (_claims, _rates, _failures, _best_rates, _contrasts, _tolerance, _unfair, _notes)
    every = [*in_short(summary), *(table(summary) for table in tables)]
    return [section for section in every if section.rows or section.notes]


def pair_sections(contexts: Sequence[ContextDetails]) -> list[Section]:
    """The intents that each arm most often takes for one another, at its best rate."""
    rows = tuple(
        (
            context.title,
            confusion.label,
            " / ".join(pair.intents),
            str(pair.answers),
            str(pair.messages),
            percent(pair.answers / pair.messages),
        )
        for context in contexts
        for confusion in context.confusions
        for pair in confusion.worst_pairs(WORST_PAIRS)
    )
    header = (" model", " method", " intents", "taken for one another", "of messages", "%")
    return [Section("Most confused intents", header, rows)] if rows else []


def in_short(summary: Summary) -> list[Section]:
    """The answer in sentences, for the study and for each context."""
    found = conclusions(summary)
    return [
        Section("In short", (), (), tuple(overall(summary))),
        *(Section(title, (), (), tuple(sentences), part=True) for title, sentences in found.items()),
    ]


def _claims(summary: Summary) -> Section:
    rows = tuple(
        (found.claim, found.answer.value, found.context, found.statement, found.because) for found in summary.findings
    )
    return Section("Claims", (" claim", " answer", " where", " statement", " because"), rows)


def _best_rates(summary: Summary) -> Section:
    header = (
        " model", " method", "seeds", "best lr", "test accuracy %", "peak train MiB", "train s",
        "trained params", "forgetting", "weight drift",
    )  # fmt: skip
    notes = (
        "Best lr: highest mean validation accuracy. ±: 95 % interval over seeds, from three on. Weight drift: "
        "‖W - W0‖ / ‖W0‖, merged.",
    )
    return Section("At each method's best rate", header, tuple(map(_at_best, summary.arms)), notes)


def _at_best(arm: ArmSummary) -> tuple[str, ...]:
    curve, top = arm.curve, arm.best
    if top is None:
        return (curve.context.title, curve.label, "0", *[UNKNOWN] * 7)
    return (
        curve.context.title,
        curve.label,
        str(len(top.runs)),
        f"{top.lr:g}",
        spread(top.mean("accuracy"), percent),
        mean_of(top, "peak_bytes_train", mebibytes),
        mean_of(top, "seconds_train", seconds),
        mean_of(top, "trainable_parameters", "{:,.0f}".format),
        mean_of(top, "forgetting", "{:.2f}".format),
        mean_of(top, "weight_drift", "{:.2g}".format),
    )


def _tolerance(summary: Summary) -> Section:
    header = (
        " model", " method", " stable window", "decades", "LR ratio to full", "LR sensitivity: nats, shared rates",
        "nats, a decade", "points, shared rates", "points, a decade",
    )  # fmt: skip
    notes = (
        "Stable window: rates around the best one with at most 20 % unstable runs and no degradation; ≤ or ≥ marks an "
        "edge that the grid doesn't reach. LR sensitivity: how much worse rates are on average than the best one, in "
        "nats per label token and in points of error, over the rates that all methods have and over those within a "
        "decade of the method's best. LR ratio: the best rate over that of full fine-tuning; its interval counts the "
        "seeds and the grid's spacing.",
    )
    return Section("Learning-rate tolerance", header, tuple(map(_tolerated, summary.arms)), notes)


def _tolerated(arm: ArmSummary) -> tuple[str, ...]:
    found = arm.window
    sensitivities = [arm.sensitivity_shared, arm.sensitivity_decade]
    return (
        arm.curve.context.title,
        arm.curve.label,
        UNKNOWN if arm.best is None else window_text(found),
        UNKNOWN if found is None else f"{found.decades:.1f}{'' if found.bracketed else ' or more'}",
        UNKNOWN if arm.rate_ratio is None else between(arm.rate_ratio, "{:.3g}".format),
        *(UNKNOWN if one is None or not one.nll.n else spread(one.nll, "{:.3f}".format) for one in sensitivities),
        *(UNKNOWN if one is None or not one.error.n else spread(one.error, percent) for one in sensitivities),
    )


def _contrasts(summary: Summary) -> Section:
    rows = tuple(
        (
            contrast.context,
            f"{contrast.first} less {contrast.second}",
            between(contrast.difference.accuracy, lambda value: f"{100 * value:+.1f}"),
            f"{contrast.difference.p:.2g}",
            str(contrast.difference.seeds),
            str(contrast.difference.messages),
            "differ" if contrast.difference.distinguishable else "not distinguishable",
        )
        for contrast in summary.contrasts
    )
    header = (" model", " methods, each at its best rate", "points of test accuracy", "McNemar p", "seeds",
              "messages", " conclusion")  # fmt: skip
    return Section("Between methods", header, rows)


def _rates(summary: Summary) -> Section:
    header = (
        " model", " method", "lr", "runs", " not stable", " by accuracy", "val accuracy %", "val NLL",
        "test accuracy %", "invalid %", "in label set %", "forgetting", "peak train MiB", "train s", "trained params",
    )  # fmt: skip
    notes = (
        "Unstable are runs that were spiky (a loss or gradient norm far above those before it), collapsed (no better "
        "than always giving the most frequent intent, after the loss rose again or with one answer for all) or "
        "diverged (a number that isn't finite, or a validation loss no better than before training). Runs that have "
        "not learned are no better either, but nothing broke: too low a rate, or too few steps. Degraded: a mean "
        "validation accuracy under 90 % of the best rate's, or 3 points under it with intervals apart. Invalid: "
        "answers outside the label set. In label set: accuracy with decoding restricted to it. Forgetting: "
        "perplexity on general text, after training over before.",
    )
    rows = tuple(_rate(arm, rate) for arm in summary.arms for rate in arm.rates)
    return Section("Side by side", header, rows, notes if rows else ())


def _failures(summary: Summary) -> Section:
    """Cells without a result: a row for each reason that cells of one arm and rate have."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    for arm in summary.arms:
        for rate in arm.rates:
            for row in rate.point.failed:
                axes = (arm.curve.context.title, arm.curve.label, f"{row.lr:g}")
                seeds.setdefault((*axes, row.outcome.value, row.reason or UNKNOWN), []).append(row.seed)
    header = (" model", " method", "lr", "seeds", " outcome", " reason")
    rows = tuple((*key[:3], ", ".join(map(str, found)), *key[3:]) for key, found in seeds.items())
    return Section("Without a result", header, rows)


def _rate(arm: ArmSummary, rate: RateSummary) -> tuple[str, ...]:
    point = rate.point
    runs = f"{len(point.runs)}" + (f" ({len(point.failed)} failed)" if point.failed else "")
    kinds = [
        f"{count} {verdict.value}" for verdict, count in sorted(point.verdicts.items()) if verdict != Verdict.STABLE
    ]
    none = ["none"] if point.runs and not kinds else []
    outcomes = Counter(row.outcome.value for row in point.failed)
    kinds += none + [f"{count} {outcome}" for outcome, count in sorted(outcomes.items())]
    marks = ["best"] if rate.is_best else ["degraded"] if rate.degraded else []
    return (
        arm.curve.context.title,
        arm.curve.label,
        f"{point.lr:g}",
        runs,
        ", ".join(kinds),
        " ".join(marks),
        mean_of(point, "val_accuracy", percent),
        mean_of(point, "val_nll", "{:.3f}".format),
        spread(point.mean("accuracy"), percent) if point.runs else UNKNOWN,
        mean_of(point, "invalid_rate", percent),
        mean_of(point, "accuracy_constrained", percent),
        mean_of(point, "forgetting", "{:.3g}".format),
        mean_of(point, "peak_bytes_train", mebibytes),
        mean_of(point, "seconds_train", seconds),
        mean_of(point, "trainable_parameters", "{:,.0f}".format),
    )


def _unfair(summary: Summary) -> Section:
    if not summary.arms:
        return Section("Fairness", (), ())
    if not summary.unfair:
        return Section("Fairness", (), (), ("The arms differ in method, rate and seed alone.",))
    return Section("These arms also differ in", (" model", " setting and what each arm has"), summary.unfair)


def _notes(summary: Summary) -> Section:
    """What runs noted beside their figures: a row for each note, with the arms and how many runs have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for arm in summary.arms:
        for rate in arm.rates:
            for row in (*rate.point.runs, *rate.point.failed):
                for note in row.notes:
                    found.setdefault((arm.curve.context.title, note), []).append(arm.curve.label)
    rows = tuple(
        (title, note, ", ".join(f"{label} {count}" for label, count in Counter(labels).items()))
        for (title, note), labels in found.items()
    )
    return Section("Notes of the runs", (" model", " note", " runs"), rows)

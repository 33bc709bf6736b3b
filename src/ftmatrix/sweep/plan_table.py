"""A plan as a person reads it: a row a cell, the reasons, the totals."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ftmatrix.roles import flat, plain, varying
from ftmatrix.spec import Cell, ReadyCell, UnfetchedCell
from ftmatrix.sweep.planning import Planned
from ftmatrix.text import UNKNOWN, duration, gibibytes

if TYPE_CHECKING:
    from pandas import DataFrame


def plan_table(planned: Sequence[Planned]) -> Table:
    """Every cell of a plan with what will happen to it."""
    table = Table(title="plan", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    apart = distinctions([item.prepared.cell for item in planned])
    words = ("model", "method", *(["settings"] if any(apart) else []))
    for name in (*words, "lr", "seed", "data", "steps", "peak", "time", "action"):
        table.add_column(name, justify="left" if name in (*words, "data", "action") else "right")
    seeds: dict[tuple[str, ...], list[int]] = {}  # cells that differ in nothing else share a row
    for item, settings in zip(planned, apart, strict=True):
        cell = item.prepared.cell
        steps = f"{item.prepared.steps:,}" if isinstance(item.prepared, ReadyCell) else UNKNOWN
        named = (cell.model.title, cell.method.name, *([settings] if any(apart) else []))
        time = UNKNOWN if item.seconds is None else duration(item.seconds)
        row = (*named, f"{cell.lr:g}", cell.data.title, steps, item.peak, time, item.action)
        seeds.setdefault(row, []).append(cell.seed)
    place = len(named) + 1
    for row, found in seeds.items():
        table.add_row(*(Text(word) for word in (*row[:place], _spans(found), *row[place:])))
    return table


def plan_frame(planned: Sequence[Planned]) -> "DataFrame":
    """A row a cell: what will happen and why, its peak in bytes and its time in seconds (NaN: unknown)."""
    import pandas

    apart = distinctions([item.prepared.cell for item in planned])
    return pandas.DataFrame.from_records(
        [
            {
                "data": (cell := item.prepared.cell).data.title,
                "model": cell.model.title,
                "method": cell.method.name,
                "settings": settings,
                "lr": cell.lr,
                "seed": cell.seed,
                "action": item.action,
                "reason": item.reason,
                "peak_bytes": None if item.forecast is None else item.forecast.most_bytes,
                "seconds": item.seconds,
            }
            for item, settings in zip(planned, apart, strict=True)
        ]
    )


def _spans(seeds: Sequence[int]) -> str:
    """Seeds in their order, those that follow one another as a span.

    >>> _spans([0, 1, 2, 5])
    '0-2, 5'
    """
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def distinctions(cells: Sequence[Cell]) -> list[str]:
    """For each cell, the settings in which cells of one method, model and data differ, as KEY=VALUE."""
    settings = [flat(plain(cell)) for cell in cells]
    alike: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell, values in zip(cells, settings, strict=True):
        alike.setdefault((cell.method.name, cell.model.title, cell.data.title), []).append(values)
    differing = varying(alike.values()) - {"lr", "seed"}
    return [" ".join(f"{key}={values[key]}" for key in values if key in differing) for values in settings]


def plan_reasons(planned: Sequence[Planned]) -> list[str]:
    """Why cells don't simply run: a line a reason, with the cells it concerns."""
    cells: dict[str, list[Planned]] = {}
    for item in planned:
        if item.reason is not None:
            cells.setdefault(item.reason, []).append(item)
    return [f"{found[0].action} ({_which(found)}): {reason}" for reason, found in cells.items()]


def _which(found: Sequence[Planned]) -> str:
    return found[0].prepared.cell.title if len(found) == 1 else f"{len(found)} cells"


def plan_totals(planned: Sequence[Planned], jobs: int) -> list[str]:
    """How many cells will do what, how long it will take, which one takes longest, and which one takes most memory."""
    counts = Counter("done" if item.done_run else item.action for item in planned)
    cells = f"{len(planned)} cell{'s' if len(planned) > 1 else ''}"
    lines = [f"{cells}: {', '.join(f'{count} {action}' for action, count in counts.items())}."]
    running = [item for item in planned if item.runs]
    timed = [(item.seconds, item.prepared.cell.title) for item in running if item.seconds is not None]
    if timed:
        total, (longest, title) = sum(seconds for seconds, _ in timed), max(timed)
        unknown = f", not counting {len(running) - len(timed)} of unknown length" if len(timed) < len(running) else ""
        beside = f"{duration(max(longest, total / jobs))} with {jobs} side by side"
        lines.append(f"About {duration(total)} of work{unknown}; {beside}. Longest: {title}, {duration(longest)}.")
    elif running:
        lines.append("No finished cell to tell the time by yet.")
    peaks = [(item.forecast.most_bytes, item.prepared.cell.title) for item in running if item.forecast is not None]
    if peaks:
        peak, title = max(peaks, key=lambda found: found[0])
        lines.append(f"Highest peak of what would run: {title}, {gibibytes(peak)}.")
    for there in dict.fromkeys(item.prepared.accelerator for item in running if isinstance(item.prepared, ReadyCell)):
        if cards := there.cards:
            free = ", ".join(f"{card.name}: {gibibytes(card.free_bytes)}" for card in cards)
            lines.append(f"{len(cards)} x {there.name}, free on each: {free}.")
    if any(item.forecast and item.forecast.is_bound for item in planned):
        lines.append("≤: a bound, because what a process needs beside its tensors weighs most in so small a cell.")
    if any(isinstance(item.prepared, UnfetchedCell) and item.forecast for item in planned):
        lines.append(
            "≤: a bound, counted with a tokenizer of few words or, without the data, at framing.max_length; exact once "
            "model and data are here."
        )
    return lines

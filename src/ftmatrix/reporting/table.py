"""The side-by-side table: a row a cell, as text for the terminal and as CSV."""

import io
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftmatrix.records import Outcome, Row, Verdict, best_of, in_order
from ftmatrix.study import differing_settings
from ftmatrix.text import UNKNOWN, mebibytes, no_formula, percent, seconds

if TYPE_CHECKING:
    from pandas import DataFrame

VERDICT_STYLES = {
    Verdict.STABLE: "green",
    Verdict.UNDECIDED: "dim",
    Verdict.NOT_LEARNED: "magenta",
    Verdict.SPIKY: "yellow",
    Verdict.COLLAPSED: "red",
    Verdict.DIVERGED: "bold red",
}


@dataclass(frozen=True)
class Column:
    """One column of the comparison. `metric` is its name in the store."""

    title: str
    metric: str
    show: Callable[[float], str]


COLUMNS = (
    Column("accuracy %", "accuracy", percent),
    Column("peak train MiB", "peak_bytes_train", mebibytes),
    Column("train s", "seconds_train", seconds),
    Column("val NLL", "val_nll", "{:.3f}".format),
    Column("macro-F1 %", "macro_f1", percent),
    Column("invalid %", "invalid_rate", percent),
    Column("in label set %", "accuracy_constrained", percent),
    Column("trained params", "trainable_parameters", "{:,.0f}".format),
)
"""In the order in which a narrow terminal gives them up, the last ones first."""

LEAST_COLUMNS = 2
"""Shown however narrow the terminal is."""


def fitting_table(rows: Sequence[Row], *, title: str, console: Console) -> Table:
    """The comparison with as many of `COLUMNS` as the console is wide."""
    for count in range(len(COLUMNS), LEAST_COLUMNS, -1):
        table = comparison_table(rows, title=title, columns=COLUMNS[:count])
        if width_of(table) <= console.width:
            return table
    return comparison_table(rows, title=title, columns=COLUMNS[:LEAST_COLUMNS])


def comparison_table(rows: Sequence[Row], *, title: str, columns: Sequence[Column] = COLUMNS) -> Table:
    """A row a cell, each model's best cell by validation in bold. What else differs between cells has a column."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    several_data = len({row.data for row in rows}) > 1
    differing = differing_settings(rows)
    names = [*(["data"] if several_data else []), "model", "method", *(["settings"] if differing else [])]
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in ("lr", "seed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right")
    best = _best(rows)
    for row in in_order(rows):
        shown = {
            "data": row.data,
            "model": row.model,
            "method": row.method,
            "settings": " ".join(f"{key}={row.settings[key]}" for key in differing if key in row.settings),
        }
        figures = [
            Text(_shown(row, column), style="bold" if column.metric == "accuracy" and row.run_id in best else "")
            for column in columns
        ]
        axes = [Text(shown[name]) for name in names]
        table.add_row(*axes, f"{row.lr:g}", str(row.seed), _outcome(row), *figures)
    return table


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for every reason that cells have no result, with how many cells it stopped."""
    return _counted(row.reason for row in rows if row.reason)


def notes(rows: Sequence[Row], *, but: Container[str] = ()) -> list[str]:
    """A line for every note that runs have, but for those that were said, with how many have it."""
    return _counted(note for row in rows for note in row.notes if note not in but)


def _counted(said: Iterable[str]) -> list[str]:
    """Each line once, with how many cells say it."""
    return [line if count == 1 else f"{line} ({count} cells)" for line, count in Counter(said).items()]


def as_frame(rows: Sequence[Row]) -> "DataFrame":
    """The comparison as a data frame: every metric of every row, and the settings in which rows differ."""
    import pandas

    axes = ["data", "model", "method", "lr", "seed", "outcome", "stability", "reason"]
    differing = differing_settings(rows)
    records = [
        {axis: getattr(row, axis) for axis in axes}
        | {"outcome": row.outcome.value}
        | {key: row.settings[key] for key in differing if key in row.settings}
        | {name: value for name, value in sorted(row.metrics.items()) if "/" not in name}
        | {"run_id": row.run_id}
        for row in in_order(rows)
    ]
    return pandas.DataFrame.from_records(records)


def as_csv(rows: Sequence[Row]) -> str:
    """The comparison as CSV, safe for spreadsheets; empty where a figure is unknown."""
    return str(as_frame(rows).map(no_formula).to_csv(index=False))


def as_text(rows: Sequence[Row], *, title: str) -> str:
    """The comparison as plain text, with every column."""
    table = comparison_table(rows, title=title)
    file = io.StringIO()
    Console(file=file, no_color=True, width=width_of(table)).print(table)
    return file.getvalue()


def width_of(table: Table) -> int:
    """Columns that a table takes if nothing limits it."""
    return Console(width=10_000).measure(table).maximum


def _outcome(row: Row) -> Text:
    if row.outcome is Outcome.COMPLETED:
        verdict = Verdict(row.stability) if row.stability else None
        return Text(verdict.value if verdict else UNKNOWN, style=VERDICT_STYLES[verdict] if verdict else "")
    return Text(row.outcome.value, style="red")


def _shown(row: Row, column: Column) -> str:
    value = row.metric(column.metric)
    return UNKNOWN if value is None else column.show(value)


def _best(rows: Sequence[Row]) -> set[str]:
    """The run of the best cell of each data set and model."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in in_order(rows):
        groups.setdefault((row.data, row.model), []).append(row)
    return {best.run_id for members in groups.values() if (best := best_of(members))}

"""The report on a terminal."""

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ftmatrix.reporting.sections import Section, sections
from ftmatrix.reporting.summary import Summary
from ftmatrix.reporting.table import width_of

ANSWER_STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}

LEAST_COLUMNS = 6
"""Columns that a table keeps on however narrow a terminal."""


def print_report(summary: Summary, console: Console) -> None:
    """The report on a terminal. A wide table leaves its last figures to the page, and folds its long texts."""
    for section in sections(summary):
        console.print(_fitting(section, console))


def _fitting(section: Section, console: Console) -> Group:
    if not section.rows:
        return Group(Text(section.title, style="bold"), *(Text(f"  {note}") for note in section.notes), Text(""))
    notes = list(section.notes)
    shown = len(section.header)
    while (
        shown > LEAST_COLUMNS
        and _is_figure(section.header[shown - 1])
        and width_of(_table(section, shown)) > console.width
    ):
        shown -= 1
    if shown < len(section.header):
        left = ", ".join(title.strip() for title in section.header[shown:])
        notes.append(f"In report.html too: {left}. A wider terminal shows more.")
    return Group(_table(section, shown), *(Text(note, style="dim") for note in notes))


def _is_figure(title: str) -> bool:
    """Whether a column holds figures: the titles of text begin with a blank."""
    return not title.startswith(" ")


def _table(section: Section, columns: int) -> Table:
    table = Table(title=Text(section.title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for title in section.header[:columns]:
        table.add_column(title.strip(), justify="right" if _is_figure(title) else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell, style=ANSWER_STYLES.get(cell, "")) for cell in row[:columns]))
    return table

"""The report on a terminal."""

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ftmatrix.report.sections import Section, sections
from ftmatrix.report.summary import Summary

ANSWER_STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}


def print_report(summary: Summary, console: Console) -> None:
    """The report on a terminal; wide tables fold their long cells."""
    for section in sections(summary):
        console.print(_shown(section))


def _shown(section: Section) -> Group:
    if not section.rows:
        return Group(Text(section.title, style="bold"), *(Text(f"  {note}") for note in section.notes), Text(""))
    table = Table(title=Text(section.title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for title in section.header:
        text = title.startswith(" ")
        table.add_column(title.strip(), justify="left" if text else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell, style=ANSWER_STYLES.get(cell, "")) for cell in row))
    return Group(table, *(Text(note, style="dim") for note in section.notes))

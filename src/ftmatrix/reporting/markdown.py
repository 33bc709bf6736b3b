"""The report as Markdown."""

from collections.abc import Sequence

from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.plots.style import Plot
from ftmatrix.reporting.sections import Section, in_short, pair_sections, sections
from ftmatrix.reporting.summary import Summary


def as_markdown(summary: Summary, contexts: Sequence[ContextDetails], plots: Sequence[Plot]) -> str:
    """The report for a pull request or a README; its pictures lie beside it."""
    parts = [f"# {_cell(summary.study)}"]
    for section in [*sections(summary), *pair_sections(contexts)]:
        parts += _section(section)
    for plot in plots:
        parts += [f"## {_cell(plot.title)}", f"![{_cell(plot.title)}]({plot.name}.png)", _cell(plot.caption)]
    return "\n\n".join(parts) + "\n"


def answer_as_markdown(summary: Summary) -> str:
    """The report's sentences alone."""
    return "\n\n".join(part for section in in_short(summary) for part in _section(section))


def _section(section: Section) -> list[str]:
    title = f"{'###' if section.part else '##'} {_cell(section.title)}"
    if not section.rows:
        return [title, "\n".join(f"- {_cell(note)}" for note in section.notes)]
    lines = [section.header, tuple("---" if title.startswith(" ") else "---:" for title in section.header)]
    lines += [tuple(_cell(cell) for cell in row) for row in section.rows]
    table = "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)
    return [title, table, *map(_cell, section.notes)]


def _cell(text: str) -> str:
    """A text that is no markup in Markdown, whatever a user called a model or a label."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())

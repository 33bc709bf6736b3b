"""The report as Markdown."""

from collections.abc import Sequence

from ftmatrix.report.details import ContextDetails
from ftmatrix.report.plots import Plot
from ftmatrix.report.sections import pair_sections, sections
from ftmatrix.report.summary import Summary


def as_markdown(summary: Summary, contexts: Sequence[ContextDetails], plots: Sequence[Plot]) -> str:
    """The report for a pull request or a README; its pictures lie beside it."""
    parts = [f"# {_cell(summary.study)}"]
    for section in [*sections(summary), *pair_sections(contexts)]:
        parts.append(f"{'###' if section.part else '##'} {_cell(section.title)}")
        if section.rows:
            lines = [section.header, tuple("---" if title.startswith(" ") else "---:" for title in section.header)]
            lines += [tuple(_cell(cell) for cell in row) for row in section.rows]
            parts.append("\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines))
            parts += [_cell(note) for note in section.notes]
        else:
            parts.append("\n".join(f"- {_cell(note)}" for note in section.notes))
    for plot in plots:
        parts += [f"## {_cell(plot.title)}", f"![{_cell(plot.title)}]({plot.name}.png)", _cell(plot.caption)]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """A text that is no markup in Markdown, whatever a user called a model or a label."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())

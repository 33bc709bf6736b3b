"""Writes a report's files."""

from collections.abc import Sequence
from pathlib import Path

from ftmatrix.report.details import ContextDetails
from ftmatrix.report.html import as_html
from ftmatrix.report.machine import as_json
from ftmatrix.report.markdown import as_markdown
from ftmatrix.report.plots import draw
from ftmatrix.report.summary import Summary
from ftmatrix.report.table import as_csv


def write_report(summary: Summary, contexts: Sequence[ContextDetails], folder: Path) -> list[Path]:
    """Write report.html, which needs no other file, report.md with its pictures, report.json and cells.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw(contexts)
    files = {
        "report.html": as_html(summary, contexts, plots),
        "report.md": as_markdown(summary, contexts, plots),
        "report.json": as_json(summary),
        "cells.csv": as_csv(summary.rows),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in files), *(plot.save(folder) for plot in plots)]

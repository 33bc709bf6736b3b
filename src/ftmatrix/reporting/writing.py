"""Writes a report's files."""

from collections.abc import Sequence
from pathlib import Path

from ftmatrix.reporting.details import ContextDetails
from ftmatrix.reporting.html import as_html
from ftmatrix.reporting.machine import as_json
from ftmatrix.reporting.markdown import as_markdown
from ftmatrix.reporting.plots import draw
from ftmatrix.reporting.summary import Summary
from ftmatrix.reporting.table import as_csv


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

"""Writes a report out: to a terminal, as Markdown, as JSON for programs."""

import dataclasses
import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ftmatrix.report.plots import draw_curves
from ftmatrix.report.sections import Section, sections
from ftmatrix.report.summary import ArmSummary, Summary
from ftmatrix.table import as_csv

ANSWER_STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}


def print_report(summary: Summary, console: Console) -> None:
    """The report on a terminal; wide tables fold their long cells."""
    for section in sections(summary):
        console.print(_shown(section))


def write_report(summary: Summary, folder: Path) -> list[Path]:
    """Write report.md, report.json, cells.csv and the plots; the files, report.md first."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_curves(summary, folder)
    files = {
        "report.md": as_markdown(summary, [path.name for path in plots]),
        "report.json": as_json(summary),
        "cells.csv": as_csv(summary.rows),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in files), *plots]


def as_markdown(summary: Summary, plots: list[str]) -> str:
    """The report for a pull request or a README."""
    parts = [f"# {summary.study}", f"{_counted(summary)}"]
    parts += [f"![{name.rpartition('.')[0]}]({name})" for name in plots]
    for section in sections(summary):
        parts.append(f"## {section.title}")
        if section.rows:
            lines = [section.header, tuple("---" if title.startswith(" ") else "---:" for title in section.header)]
            lines += [tuple(_cell(cell) for cell in row) for row in section.rows]
            parts.append("\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines))
        parts += [_cell(note) for note in section.notes]
    return "\n\n".join(parts) + "\n"


def as_json(summary: Summary) -> str:
    """The report for a program. What isn't known is null."""
    content = {
        "study": summary.study,
        "cells": len(summary.rows),
        "failed": len(summary.failed),
        "methods": [_arm(arm) for arm in summary.arms],
        "contrasts": summary.contrasts,
        "claims": summary.findings,
        "also_differ_in": [{"where": where, "what": what} for where, what in summary.unfair],
    }
    return json.dumps(_plain(content), indent=1) + "\n"


def _arm(arm: ArmSummary) -> dict[str, Any]:
    context = arm.curve.context
    return {
        "model": context.model,
        "data": context.data,
        "settings": dict(context.settings),
        "method": arm.curve.label,
        "seeds": arm.curve.seeds,
        "best_lr": arm.best.lr if arm.best else None,
        "test_accuracy": arm.best.mean("accuracy") if arm.best else None,
        "window": arm.window,
        "lr_sensitivity_shared": arm.sensitivity_shared,
        "lr_sensitivity_decade": arm.sensitivity_decade,
        "lr_ratio_to_full": arm.rate_ratio,
        "rates": [
            {
                "lr": rate.point.lr,
                "runs": len(rate.point.runs),
                "failed": len(rate.point.failed),
                "unstable": rate.point.unstable,
                "verdicts": {verdict.value: count for verdict, count in rate.point.verdicts.items()},
                "degraded": rate.degraded,
                "test_accuracy": rate.point.mean("accuracy"),
                "validation_accuracy": rate.point.mean("val_accuracy"),
            }
            for rate in arm.rates
        ],
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _counted(summary: Summary) -> str:
    failed = f", {len(summary.failed)} of them without a result" if summary.failed else ""
    return f"{len(summary.rows)} cells{failed}."


def _cell(text: str) -> str:
    """A text that is no markup in Markdown, whatever a user called a model or a label."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _shown(section: Section) -> Group:
    if not section.rows:
        return Group(Text(f"{section.title}: {' '.join(section.notes)}"))
    table = Table(title=Text(section.title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for title in section.header:
        text = title.startswith(" ")
        table.add_column(title.strip(), justify="left" if text else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell, style=ANSWER_STYLES.get(cell, "")) for cell in row))
    return Group(table, *(Text(note, style="dim") for note in section.notes))

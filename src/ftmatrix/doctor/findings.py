"""What the doctor found, as a table for a person and as JSON for a program."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ftmatrix.machine import replacing

Figures = dict[str, float | str | None]


class State(StrEnum):
    """What a finding means. `NOTED` is neither good nor bad."""

    OK = "OK"
    NOTED = "–"
    OFF = "off"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `figures` are what the words were made of, for programs."""

    subject: str
    found: str
    state: State = State.NOTED
    figures: Figures = dataclasses.field(default_factory=dict)


STYLES = {State.OK: "green", State.NOTED: "dim", State.OFF: "bold red"}


def findings_table(title: str, findings: Sequence[Finding]) -> Table:
    """A row a finding."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.subject, Text(finding.state, style=STYLES[finding.state]), Text(finding.found))
    return table


def write_findings(path: Path, parts: Mapping[str, Sequence[Finding]]) -> None:
    """All findings as JSON: of each part a list of subject, state, found and figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {part: [dataclasses.asdict(finding) for finding in findings] for part, findings in parts.items()}
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode())

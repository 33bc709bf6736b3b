"""From a store, or a file of results, to a study's report."""

from pathlib import Path
from typing import Protocol

from ftmatrix.errors import ConfigError
from ftmatrix.records import CellResult, Row
from ftmatrix.reporting.details import read_details
from ftmatrix.reporting.summary import Summary, summarise
from ftmatrix.reporting.writing import write_report
from ftmatrix.spec import claims_of
from ftmatrix.study import cached


class Source(Protocol):
    """Where cells come from: a store, or a results.csv."""

    @property
    def study(self) -> str: ...

    def cells(self) -> list[Row]: ...

    def result(self, row: Row) -> CellResult: ...

    def curve(self, row: Row, series: str) -> list[tuple[int, float]]: ...


def make_report(source: Source, folder: Path) -> tuple[Summary, list[Path]]:
    """Read a study and write its report; the files, the page first.

    Raises:
        ConfigError: the study has no cells yet, or its claims can't be read.
    """
    if not (rows := source.cells()):
        raise ConfigError(
            f"report {source.study}: no finished cell in the store yet; run a sweep with study={source.study} first"
        )
    results = cached(source.result)
    summary = summarise(source.study, rows, results, claims_of(source.study))
    return summary, write_report(summary, read_details(summary, results, source.curve), folder)

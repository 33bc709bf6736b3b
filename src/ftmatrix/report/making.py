"""From a store to a study's report."""

from pathlib import Path

from ftmatrix.answers import cached
from ftmatrix.errors import ConfigError
from ftmatrix.report.details import read_details
from ftmatrix.report.summary import Summary, summarise
from ftmatrix.report.writing import write_report
from ftmatrix.studies import claims_of
from ftmatrix.tracking import Store


def make_report(store: Store, folder: Path) -> tuple[Summary, list[Path]]:
    """Read a study and write its report; the files, the page first.

    Raises:
        ConfigError: the study has no cells yet, or its claims can't be read.
    """
    if not (rows := store.cells()):
        raise ConfigError(
            f"report {store.study}: no finished cell in the store yet; run a sweep with study={store.study} first"
        )
    results = cached(store.result)
    summary = summarise(store.study, rows, results, claims_of(store.study))
    return summary, write_report(summary, read_details(summary, results, store.curve), folder)

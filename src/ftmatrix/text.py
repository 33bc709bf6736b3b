"""Figures and texts as people and spreadsheets read them."""

from typing import TypeVar

UNKNOWN = "—"
"""What stands where a figure isn't known."""


def percent(value: float) -> str:
    """A rate as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def mebibytes(value: float) -> str:
    """Bytes as MiB."""
    return f"{value / 2**20:,.0f}"


def seconds(value: float) -> str:
    """Seconds, with a decimal while it says something."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def gibibytes(count: float) -> str:
    """Bytes as GiB, small ones as MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


Cell = TypeVar("Cell")
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def no_formula(value: Cell) -> Cell | str:
    """A value for a CSV file that a spreadsheet won't run: texts that it would read as formulas get an apostrophe.

    >>> no_formula("=1+1")
    "'=1+1"
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_SIGNS) else value

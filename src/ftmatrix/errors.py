"""Errors that a user can act on. Each message is one line: the value, the rule, the way out."""

import difflib
import re
from collections.abc import Iterable

from ftmatrix.records import Outcome


class FtmatrixError(Exception):
    """Base of all errors that are the input's, not the program's; `outcome` is what a cell that meets it becomes."""

    outcome = Outcome.CRASHED


class ConfigError(FtmatrixError):
    """A value or a name on the command line or in a YAML file is wrong. Nothing has been loaded yet."""


class DataError(FtmatrixError):
    """The data set can't be used as it is."""

    outcome = Outcome.BAD_DATA


class ModelError(FtmatrixError):
    """The model can't be found, reached or used."""

    outcome = Outcome.MISSING_MODEL


class GatedError(ModelError):
    """The model's licence has to be accepted on the hub first."""

    outcome = Outcome.GATED


class NotFetchedError(FtmatrixError):
    """Only a download would bring the model or the data, and none was allowed."""


class UnsupportedError(FtmatrixError):
    """The method can't run on this device."""

    outcome = Outcome.UNSUPPORTED


class StoppedError(FtmatrixError):
    """The cell was asked to stop, and has saved how far it came."""

    outcome = Outcome.INTERRUPTED


class UndeliveredError(FtmatrixError):
    """Results are on this disk, and MLflow didn't take them."""


class UnforeseenError(FtmatrixError):
    """Nothing can be said of a cell's memory in advance. It may well run."""


class CellFailedError(FtmatrixError):
    """A cell ended without a result. Its row says why, so nothing more has to be printed."""


class ClaimsOpenError(FtmatrixError):
    """Some claim of a study isn't supported. Its report says so, so that nothing more has to be printed."""

    def __init__(self, *, contradicted: bool) -> None:
        super().__init__("contradicted" if contradicted else "open")
        self.contradicted = contradicted


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the closest valid one, and all of them.

    >>> nearest("lorra", ["full", "lora"])
    "did you mean 'lora'? Available: full, lora"
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Available: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What an exception says, cut to one line; a URI in it loses its user and password."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"://[^/\s@]*@", "://", line)[:300]

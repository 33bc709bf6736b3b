"""MLflow made quiet, whether a store can be reached, and how a new one is made by one sweep at a time."""

import logging
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ftmatrix.errors import ConfigError, first_line
from ftmatrix.spec import without_credentials

ALONE_SECONDS = 60
"""How long another sweep may take to make a SQLite store."""


def quieten_mlflow() -> None:
    """Have MLflow send nothing to its makers, print no password, and give up soon: records are delivered again."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print the URI's password too
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="mlflow")


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other kind."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def alone_at(file: Path | None) -> Iterator[None]:
    """Have a SQLite store to oneself: MLflow makes a new one in many steps, and two sweeps may begin at once."""
    with ExitStack() as held:
        if file is not None:
            with suppress(OSError):  # nothing may be written there, or nobody lets go: MLflow says it better
                file.parent.mkdir(parents=True, exist_ok=True)  # as MLflow would
                held.enter_context(FileLock(file.with_name(f".{file.name}.lock"), timeout=ALONE_SECONDS))
        yield


def check_reachable(uri: str, *, create: bool) -> None:
    """Ask a store whether it is there before MLflow does, which would try for minutes.

    Raises:
        ConfigError: a server doesn't answer, or a file that shouldn't be created isn't there.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{without_credentials(uri).rstrip('/')}/health", timeout=10).close()
        except urllib.error.HTTPError:
            pass  # something answers, if not as MLflow's own server does: let MLflow judge
        except OSError as error:
            raise ConfigError(
                f"tracking.uri={without_credentials(uri)}: no MLflow server answers there ({first_line(error)}); "
                "start it, or take another"
            ) from error
    elif (file := sqlite_file(uri)) and not create and not file.exists():
        raise ConfigError(f"{uri}: no store there yet; run a sweep first, or name the store with MLFLOW_TRACKING_URI")

"""Where configuration lies, and where results go."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ftmatrix.errors import ConfigError
from ftmatrix.roles import execution

PACKAGE = Path(__file__).parents[1]
DEFAULT_STORE = "sqlite:///mlflow.db"


REPORTS = Path("reports")
"""In the working directory: a folder a study."""


def config_folder() -> Path:
    """The folder of Hydra's YAML: beside the package in a wheel, at the top of a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def experiments_root() -> Path:
    """The folder that holds `experiments/`, packaged or in a checkout."""
    return config_folder().parent


def without_credentials(uri: str) -> str:
    """A URI as it may be shown and kept: without user and password.

    >>> without_credentials("https://me:secret@mlflow.example/a")
    'https://mlflow.example/a'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def settled_uri(uri: str) -> str:
    """A store's URI that means the same in every working directory."""
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"


def goal_of(uri: str, study: str) -> str:
    """The store and study that a record belongs to, in 8 hex digits."""
    place = without_credentials(settled_uri(uri)).rstrip("/")  # a new password is no other store
    return hashlib.sha256(f"{place}\n{study}".encode()).hexdigest()[:8]


@dataclass
class Tracking:
    """Where results go."""

    uri: str | None = execution(None)
    """MLflow's tracking URI (None: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)."""
    sweep: str | None = execution(None)
    """Name of the sweep that this cell belongs to (None: made from the time)."""
    patience_minutes: float = execution(10.0)
    """How long a sweep that is over waits for a store that is away, before it leaves its results on disk."""

    @property
    def store(self) -> str:
        """The store to use: as configured, else MLFLOW_TRACKING_URI, else a SQLite file in the working directory."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: the patience is negative.
        """
        if not 0 <= self.patience_minutes < math.inf:
            raise ConfigError(f"tracking.patience_minutes={self.patience_minutes:g}: must be 0 or above")

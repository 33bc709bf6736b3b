"""Where fetched and converted models lie."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where fetched and converted models lie: FTMATRIX_CACHE, or ftmatrix in the user's cache folder."""
    if chosen := os.environ.get("FTMATRIX_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftmatrix"

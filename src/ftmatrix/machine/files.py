"""Files that are whole or not there, and what is in them."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file in one stroke: whoever dies in the middle, or is refused by the disk, leaves the old one."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("no space left", "disk quota exceeded")
"""How it reads where a library raises an error of its own (safetensors)."""


def is_disk_full(error: Exception) -> bool:
    """Whether an error says that a disk has no room left."""
    return getattr(error, "errno", None) in FULL or any(words in str(error).lower() for words in FULL_WORDS)

"""Figures beside a cell's result, none of which can cost it that result."""

from collections.abc import Callable
from typing import TypeVar

from ftmatrix.errors import first_line
from ftmatrix.machine import is_disk_full

Found = TypeVar("Found")


class Secondary:
    """Finds figures beside the result. One that fails is unknown, and a note says why."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, name: str, find: Callable[[], Found]) -> Found | None:
        """What `find` finds; None, with a note, where it fails. A full disk is told on: what waits for room waits.

        Raises:
            OSError: the disk is full.
        """
        try:
            return find()
        except Exception as error:
            if is_disk_full(error):
                raise
            self.notes.append(f"{name} unknown ({type(error).__name__}: {first_line(error)})")
            return None

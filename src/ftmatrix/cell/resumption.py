"""A running cell's progress on disk, from which the same cell goes on as if nothing had happened."""

import pickle
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ftmatrix.errors import first_line
from ftmatrix.machine import replacing
from ftmatrix.records import MemoryParts, PhasePeak, Step, from_json, to_json


@dataclass(frozen=True)
class Progress:
    """What a cell has come to by its last step: `steps` so far, figures from before them, peaks and seconds spent."""

    steps: tuple[Step, ...]
    val_nll_initial: float
    text_nll_initial: float | None
    memory: MemoryParts | None
    peaks: tuple[PhasePeak, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Saved:
    """A file's content: the progress, and the tensors that training goes on from."""

    progress: Progress
    state: dict[str, Any]


class ProgressFile:
    """Keeps a cell's progress and its training's tensors in one file. `minutes` lie between two saves (0: never)."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.seconds = path, 60 * minutes
        self._saved_at = time.monotonic()

    def load(self) -> "Saved | None":
        """What was saved; None where there is nothing, or nothing whole."""
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
            return Saved(from_json(Progress, saved.pop("progress")), saved)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
            return None

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.seconds > 0 and time.monotonic() - self._saved_at >= self.seconds

    def save(self, progress: Progress, state: dict[str, Any]) -> bool:
        """Replace what was saved, in one stroke: a death in the middle leaves the old file, and so does a full disk.

        Whether it was saved: without it the cell can go on, if not be gone on with.
        """
        self._saved_at = time.monotonic()
        try:
            with replacing(self.path) as file:
                torch.save({"progress": to_json(progress), **state}, file)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            with suppress(OSError):  # the log may lie on the same disk
                print(f"progress can't be saved: {first_line(error)}", file=sys.stderr)
            return False
        return True

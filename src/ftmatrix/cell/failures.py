"""What an exception makes of its cell."""

import errno

import torch

from ftmatrix.cell.run import CellRun
from ftmatrix.errors import FtmatrixError, first_line
from ftmatrix.records import CellResult, Outcome

OUT_OF_MEMORY_WORDS = ("out of memory", "allocate memory", "bad_alloc", "_alloc_failed", "memoryallocation")
"""How torch, the system and the GPU libraries say so: "can't allocate memory", CUBLAS_STATUS_ALLOC_FAILED, …"""


def failure(error: BaseException, run: CellRun | None) -> CellResult:
    """What an exception makes of its cell: an outcome, and a reason in one line."""
    where = f"while {run.phase.doing}" if run else "while starting"
    peaks = tuple(run.meter.peaks) if run else ()
    phase = run.phase if run else None
    if isinstance(error, FtmatrixError) and not is_out_of_memory(error):
        return CellResult(error.outcome, str(error), phase, peaks=peaks)
    if is_out_of_memory(error):
        forecast = run.ready.forecast if run else None
        reason = f"memory ran out {where} ({first_line(error)})"
        return CellResult(Outcome.OUT_OF_MEMORY, reason, phase, peaks=peaks, forecast=forecast)
    return CellResult(Outcome.CRASHED, f"{type(error).__name__} {where}: {first_line(error)}", phase, peaks=peaks)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)

"""The resident set of a CPU's process: its peak, and an allocator that keeps it true, or is quick.

glibc keeps freed memory for what comes next. That is quick, and makes the peak up to half as much again as the tensors
ever took; told to give large blocks back at once, it has to map them anew in every step, for up to twice the time.
"""

import ctypes
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ftmatrix.machine import host

STEADY_BYTES = 2**17
"""Blocks from this size on are given back at once while memory is measured."""
QUICK_BYTES, QUICK_TOP_BYTES = 2**25, 2**30
"""Blocks below this size, and so much at the heap's end, are kept where speed counts (mallopt(3))."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LOOK_SECONDS = 0.5
"""How often a quick process looks whether others need what it keeps."""


def resident_bytes() -> int | None:
    """What of this process is in memory; None where that can't be known (not Linux)."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int | None:
    """The most that it was since `forget_peak`."""
    return _status_bytes("VmHWM")


def forget_peak() -> bool:
    """Set the peak back to what is resident now, if that can be done (Linux, proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def be_steady() -> None:
    """Give back all that the allocator keeps, and from now on every large block as it is freed. glibc only."""
    if libc := _glibc():
        _keep(libc, STEADY_BYTES, STEADY_BYTES)
        libc.malloc_trim(0)


def be_quick(spare_bytes: int) -> bool:
    """Have the allocator keep what is freed, for as long as the machine has so much to spare. Whether it does."""
    libc = _glibc()
    if libc is None or not _is_free(spare_bytes):
        return False
    _keep(libc, QUICK_BYTES, QUICK_TOP_BYTES)

    def look() -> None:
        while _is_free(spare_bytes):
            time.sleep(LOOK_SECONDS)
        be_steady()

    threading.Thread(target=look, name="give back memory that is needed", daemon=True).start()
    return True


def _is_free(count: int) -> bool:
    free = host.free_bytes()
    return free is not None and free >= count


def _keep(libc: Any, block_bytes: int, top_bytes: int) -> None:
    libc.mallopt(_M_MMAP_THRESHOLD, block_bytes)
    libc.mallopt(_M_TRIM_THRESHOLD, top_bytes)


@cache
def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        _ = libc.mallopt, libc.malloc_trim
        return libc
    return None


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)

"""What may have killed a cell's process: memory, by the kernel's hand or by its own."""

import re
from contextlib import suppress
from pathlib import Path


def failed_allocation(log: Path) -> str | None:
    """The last words of a library that ends its process where memory runs out, as Rust's and C++'s do."""
    with suppress(OSError):
        found = re.findall(r"memory allocation of \d+ bytes failed|std::bad_alloc", log.read_text(errors="replace"))
        return str(found[-1]) if found else None
    return None


def kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since the machine started (Linux; else 0)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

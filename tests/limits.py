"""Limits that a test sets to another process (Linux)."""

import resource
from pathlib import Path


def leave_address_space(pid: int, room: int) -> None:
    """Let a process take so many more bytes of address space, and no more."""
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + room, used + room))

"""What this machine lets a process have: cores, memory, and the limits of its control groups."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")
CPUS = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and a container's quota (Linux, cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (GROUPS / "cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit
        return cores


def memory_bytes() -> int | None:
    """The machine's memory; None where the system doesn't tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def free_bytes() -> int | None:
    """What the machine, and every control group that this process is in, still has for programs."""
    free = list(_groups_free_bytes())
    with suppress(OSError):  # not Linux
        lines = MEMORY.read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(free, default=memory_bytes())


def _groups_free_bytes() -> Iterator[int]:
    """Limit less use, of each control group with a limit from this process's own upwards (Linux, cgroup v1 and v2)."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, names = GROUPS, ("memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                root = GROUPS / "memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            else:
                continue
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder == root or root in folder.parents:
                    yield from _left_in(folder, *names)


def _left_in(folder: Path, limit: str, used: str, prefix: str) -> Iterator[int]:
    """A group's limit less what it uses, not counting file pages, which the kernel drops when it needs room."""
    with suppress(OSError, ValueError):  # no such group in this namespace, or its limit is "max"
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
        stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
        yield most - taken + sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def processor_name() -> str:
    """The CPU's own name for itself: `Apple M4 Pro` where `platform` says `arm`, as of every other one of its kind."""
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        lines = [f"model name: {asked.stdout}"] if asked.stdout.strip() else []
    else:
        lines = CPUS.read_text().splitlines() if CPUS.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())

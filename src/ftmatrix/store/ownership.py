"""Whose run it is that is still going, and whether that process is alive."""

import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from mlflow.entities import Run

OWNER_TAG = "owner"
"""The process that follows a run: HOST:NAMESPACE/PID/START."""
SEEN_TAG = "seen"
"""When the owner last said that it is alive, in milliseconds since 1970."""
SEEN_SECONDS = 60
"""How often it does so."""
SILENT_SECONDS = 600
"""After so long without a word, a process of another machine is taken for dead."""

CLOCK_SECONDS = 5
"""By how much two readings of a process's start may differ, because the clock was set."""


@cache
def own_name() -> str:
    """The name of this process, which no other has had."""
    return f"{_place()}/{os.getpid()}/{psutil.Process().create_time():.0f}"


def is_alive(run: "Run") -> bool:
    """Whether the process that a running run belongs to is still there."""
    owner = run.data.tags.get(OWNER_TAG)
    if owner is None:
        return False
    place, pid, started = owner.rsplit("/", 2)
    if place != _place():
        seen = max(run.info.start_time or 0, int(run.data.tags.get(SEEN_TAG, "0")))
        return time.time() - seen / 1000 < SILENT_SECONDS
    try:
        process = psutil.Process(int(pid))
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and bool(abs(process.create_time() - int(started)) <= CLOCK_SECONDS)
    except psutil.Error:
        return False


@cache
def _place() -> str:
    """Where process ids mean something: this machine, or this container of it."""
    try:
        return f"{socket.gethostname()}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()

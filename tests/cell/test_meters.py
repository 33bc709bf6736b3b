"""A CPU's peaks: true while they are taken, and quick afterwards. Each test has a process of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a CPU's peaks are unknown")

MIB = 2**20
BLOCKS = """
import torch
from ftmatrix.machine import resident
from ftmatrix.machine import Device, pick
from ftmatrix.cell.meters import MemoryMeter

MIB = 2**20
meter = MemoryMeter(pick(Device.cpu))

def work(blocks):
    held = [torch.ones(MIB // 4) for _ in range(blocks)]
    first, last = held[::2], held[1::2]
    del held
    first.clear()
"""


def output_of(program: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", BLOCKS + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_peak_is_the_phases_own_and_freed_memory_is_given_back() -> None:
    before, high, low, after = output_of("""
print(resident.resident_bytes())
for phase, blocks in (("high", 200), ("low", 50)):
    with meter.phase(phase):
        work(blocks)
print(*(peak.peak_bytes for peak in meter.peaks), resident.resident_bytes())
""")
    assert 200 * MIB <= high < 220 * MIB
    assert 50 * MIB <= low < 70 * MIB
    assert after - before < 20 * MIB


def test_in_a_hurry_peaks_stay_and_what_is_kept_counts_as_reserved() -> None:
    peak, later, reserved, kept = output_of("""
with meter.phase("train"):
    work(50)
print(meter.peaks[0].peak_bytes)
meter.hurry()
with meter.phase("train"):
    work(200)
print(meter.peaks[0].peak_bytes, meter.peaks[0].reserved_bytes, resident.resident_bytes() - meter.baseline_bytes)
""")
    assert later == peak < 70 * MIB
    assert reserved >= 200 * MIB
    assert kept >= 150 * MIB


def test_what_is_kept_is_given_back_once_the_machine_is_short_of_memory() -> None:
    kept, after = output_of("""
import time
free = 2**40
resident.host.free_bytes = lambda: free
assert resident.be_quick(2**40)
work(200)
print(resident.resident_bytes() - meter.baseline_bytes)
free -= 1
time.sleep(3 * resident.LOOK_SECONDS)
print(resident.resident_bytes() - meter.baseline_bytes)
assert not resident.be_quick(2**40)
""")
    assert kept >= 150 * MIB
    assert after < 30 * MIB

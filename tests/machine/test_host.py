"""What the machine lets a process have, read from files that a system would show."""

from pathlib import Path

import pytest

from ftmatrix.machine import host

GIB = 2**30


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used", "file"),
    [
        ("0::/job/cell", "job/cell", "memory.max", "memory.current", "inactive_file"),
        ("0::/job/cell", "job", "memory.max", "memory.current", "inactive_file"),  # the limit is an ancestor's
        ("4:cpu,memory:/job", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ("4:memory:/not/here", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_control_groups_limit_counts(
    line: str, folder: str, limit: str, used: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "self").write_text(f"7:pids:/elsewhere\n{line}\n")
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (group / limit).write_text(f"{3 * GIB}\n")
    (group / used).write_text(f"{2 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 5\n{file} {GIB // 4}\n{file.replace('inactive', 'active')} {GIB // 4}\n")
    monkeypatch.setattr(host, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host, "OWN_GROUPS", tmp_path / "self")
    monkeypatch.setattr(host, "MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(f"MemTotal: {9 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    assert host.free_bytes() == 1.5 * GIB
    (group / limit).write_text("max\n")
    assert host.free_bytes() == 8 * GIB
    (tmp_path / "meminfo").unlink()
    assert host.free_bytes() == host.memory_bytes()


def test_this_machine_has_something() -> None:
    assert host.usable_cores() >= 1
    assert (host.free_bytes() or 0) > 0
    assert host.processor_name()

"""What a process may take within a container: limits of control groups, from files as Linux has."""

from pathlib import Path

import pytest
import torch

from assembler.engine import host_memory as module
from assembler.engine.host_memory import host_memory, resident_bytes
from assembler.engine.kv_cache import cache_budget, device_memory

MACHINE = 64 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_physical_bytes", lambda: MACHINE)


def write(root: Path, **files: str) -> Path:
    """The files of a system below `root`; __ in a name stands for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def limit(path: str, number: int | str) -> dict[str, str]:
    return {path.replace("/", "__"): str(number)}


def test_a_machine_without_groups_has_what_it_has(tmp_path: Path):
    assert host_memory(tmp_path) == MACHINE
    assert host_memory(write(tmp_path, proc__self__cgroup="0::/")) == MACHINE


def test_version_2_counts_the_group_and_those_around_it(tmp_path: Path):
    write(tmp_path, proc__self__cgroup="0::/user/app")
    write(tmp_path, **limit("sys/fs/cgroup/user/app/memory.max", "max"))
    assert host_memory(tmp_path) == MACHINE
    write(tmp_path, **limit("sys/fs/cgroup/user/memory.max", 3 << 30))
    assert host_memory(tmp_path) == 3 << 30
    write(tmp_path, **limit("sys/fs/cgroup/user/app/memory.max", 2 << 30))
    assert host_memory(tmp_path) == 2 << 30


def test_version_1_counts_the_memory_controller(tmp_path: Path):
    groups = "9:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/a"
    write(tmp_path, proc__self__cgroup=groups)
    write(tmp_path, **limit("sys/fs/cgroup/cpu,cpuacct/a/memory.limit_in_bytes", 1))
    unlimited = 9223372036854771712  # as Linux says it
    write(tmp_path, **limit("sys/fs/cgroup/memory/a/memory.limit_in_bytes", unlimited))
    assert host_memory(tmp_path) == MACHINE
    write(tmp_path, **limit("sys/fs/cgroup/memory/a/memory.limit_in_bytes", 1 << 30))
    assert host_memory(tmp_path) == 1 << 30


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/docker/0123", "memory.max"),
        ("4:memory:/docker/0123\n0::/system", "memory/memory.limit_in_bytes"),
    ],
)
def test_a_container_has_its_own_files_at_the_top(groups: str, file: str, tmp_path: Path):
    write(tmp_path, proc__self__cgroup=groups, **limit(f"sys/fs/cgroup/{file}", 5 << 30))
    assert host_memory(tmp_path) == 5 << 30


def test_the_cache_is_a_part_of_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write(tmp_path, proc__self__cgroup="0::/", **limit("sys/fs/cgroup/memory.max", 8 << 30))
    monkeypatch.setattr("assembler.engine.kv_cache.host_memory", lambda: host_memory(tmp_path))
    cpu = torch.device("cpu")
    assert device_memory(cpu) == (8 << 30, 8 << 30)
    assert cache_budget(cpu, None) == 2 << 30
    used = resident_bytes()
    assert used > 50 << 20
    assert cache_budget(cpu, 0.5) == pytest.approx((4 << 30) - used, rel=0.01)

"""The memory that this process may take on a CPU: the machine's, or what a container leaves of it.

A container's limit is that of its control group (Linux's cgroups, version 1 or 2), or of a group
around that one. Whoever takes more is killed, however much the machine has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_UNKNOWN = 16 << 30


def host_memory(root: Path = Path("/")) -> int:
    """Bytes: the least of the physical memory and the limits of the control groups.

    Args:
        root: where the system's /proc and /sys are found.
    """
    return min([_physical_bytes(), *_limits(root)])


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return _UNKNOWN


def _limits(root: Path) -> Iterator[int]:
    """The limits of this process's groups, in bytes; none where there are none."""
    for file in _limit_files(root):
        try:
            text = file.read_text().strip()
        except OSError:  # not there, or not ours to read
            continue
        if text.isdigit():  # else "max": no limit
            yield int(text)


def _limit_files(root: Path) -> Iterator[Path]:
    """Where limits may stand: those of the process's groups, and of all the groups around them.

    Within a container the groups' names may be those that the machine knows, while the files are
    the container's own, at the top: that is looked at in any case.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            top, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(name.lstrip("/"))
        for place in (group, *group.parents):
            yield top / place / file


def resident_bytes() -> int:
    """Physical memory of this process, weights that are mapped from files included."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: what the weights take is not known
        return 0

"""How much memory there is to fill."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Of the memory that is free, what data may take: they are copied when they are split and standardised, and a model and other
# programs want some too.
SHARE = 0.25

_GROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of memory that are free, as the system and a container's limit have it."""
    return max(0, min([_of_system(), *_of_container()]))


def fits(size: int) -> bool:
    """Whether so many bytes of data are few enough to be held in memory."""
    return size <= SHARE * available_memory()


def _of_system() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Where the system does not say what is free: half of what there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _of_container() -> list[int]:
    """What the limits of this container leave; empty without any."""
    left = []
    for limit, used in (
        (_GROUPS / "memory.max", _GROUPS / "memory.current"),
        (_GROUPS / "memory/memory.limit_in_bytes", _GROUPS / "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # a limit of "max" is none
            left.append(int(limit.read_text()) - int(used.read_text()) + _cached(limit.parent))
    return left


def _cached(group: Path) -> int:
    """Bytes of files in the container's memory, which the system gives up when they are wanted."""
    fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))

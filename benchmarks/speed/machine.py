"""The machine and the libraries, in words; no names of hosts, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("SPEED_THREADS", "2"))  # of every contender; the targets are for two cores
PACKAGES = ("xhat", "torch", "numpy", "pythae", "pyro-ppl", "jax", "jaxlib", "optax", "keras")


def pin() -> int:
    """Keep this process, and those that it starts, on as many cores as there are threads; returns how many there were."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:THREADS])
    return len(allowed)


def processor() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instructions() -> list[str]:
    """Those that decide how fast products are."""
    info = Path("/proc/cpuinfo")
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.is_file() else ""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return [name for name in wanted if name in flags.split()]


def describe(cores: int) -> dict[str, Any]:
    """What the report says about where it was made."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "xhat" not in versions:
        import xhat

        versions = {"xhat": xhat.__version__, **versions}
    return {
        "processor": processor(),
        "instructions": _instructions(),
        "cores": cores,
        "threads": THREADS,
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }

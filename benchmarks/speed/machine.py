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
    return _first_processor().get("model name") or platform.processor() or platform.machine()


def silicon() -> dict[str, Any]:
    """Which processor this is, whatever it is sold as."""
    held = _first_processor()
    named = {key: held.get(name, "") for key, name in (("maker", "vendor_id"), ("family", "cpu family"), ("model", "model"))}
    return {**named, "stepping": held.get("stepping", ""), "machine": platform.machine(), "instructions": _instructions()}


def _first_processor() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    first = info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0] if info.is_file() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _instructions() -> list[str]:
    """Those that decide how fast products are."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return [name for name in wanted if name in _first_processor().get("flags", "").split()]


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

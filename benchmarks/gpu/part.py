"""A part of the run: something to be checked or timed by itself, with a limit of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Setup:
    """Where, and whether it is a rehearsal: everything on the processor, small, with graphs replayed as plain functions."""

    device: str
    few: bool

    def wait(self) -> None:
        """Let the device finish, so that a clock sees all of its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class Part(NamedTuple):
    """``run`` returns what it found, with a "message"; a check that fails raises.

    After a part that is to be ``alone`` its process does no other, for it does to the process what could harm those that follow.
    """

    kind: str  # "check" or "speed"
    limit: float  # seconds
    run: Callable[[Setup], dict[str, Any]]
    alone: bool = False


def expect(holds: bool, message: str) -> None:
    """Fail a check.

    Raises:
        AssertionError: it does not hold.
    """
    if not holds:
        raise AssertionError(message)


def rounds(work: Callable[[], int], setup: Setup, least: float = 1.0, most: int = 9) -> dict[str, Any]:
    """Time work that returns how many steps it took: rounds of it, after one that does not count.

    Args:
        work: one round.
        setup: where.
        least: seconds that all rounds take together at least; in a rehearsal one round is enough.
        most: rounds.
    """
    began = time.perf_counter()
    work()
    setup.wait()
    first = time.perf_counter() - began
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    each: list[float] = []
    while not each or (not setup.few and len(each) < most and (len(each) < 3 or time.perf_counter() - began < least)):
        start = time.perf_counter()
        steps = work()
        setup.wait()
        each.append((time.perf_counter() - start) / steps)
    result: dict[str, Any] = {"seconds": statistics.median(each), "rounds": each, "first": first}
    if setup.device == "cuda":
        result["peak"] = torch.cuda.max_memory_allocated()
    return result


def told(seconds: float) -> str:
    """A time in a unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"

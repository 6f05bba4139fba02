"""What an example costs as networks, batches and data grow."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.speed.race import race
from benchmarks.speed.tasks import Task


class Axis(NamedTuple):
    """A size that grows; ``tasks`` by that size."""

    title: str
    label: str
    tasks: dict[int, Task]
    limit: bool  # whether the products alone are drawn beside it


def _digits(examples: int, batch: int, hidden: int) -> Task:
    return Task("vae", "digits", examples, batch, (hidden,), 20)


AXES: dict[str, Axis] = {
    "hidden": Axis(
        "784-h-20, batch 128",
        "hidden units h",
        {hidden: _digits(12_800, 128, hidden) for hidden in (100, 300, 1000, 3000)},
        True,
    ),
    "batch": Axis(
        "784-400-20, batch B",
        "batch B",
        {batch: _digits(16_384, batch, 400) for batch in (32, 128, 512, 4096)},
        True,
    ),
    "rows": Axis(
        "64-64-8 on N rows of 64 bits, batch 256",
        "rows of data N",
        {rows: Task("vae", "bits", rows, 256, (64,), 8) for rows in (1_000, 100_000, 1_000_000, 10_000_000)},
        False,
    ),
}
CONTENDERS = ("xhat", "xhat-eager")
LIMIT = "limit-onednn"


def measure_sizes(rounds: int, few: bool = False) -> dict[str, Any]:
    """Each axis: contender → size → seconds an example in each round, or why there are none."""
    results: dict[str, Any] = {}
    for name, axis in AXES.items():
        tasks = {size: task.few() if few else task for size, task in axis.tasks.items()}
        print(f"  {name}", flush=True)
        contenders = (*CONTENDERS, LIMIT) if axis.limit else CONTENDERS
        curves: dict[str, Any] = {}
        for contender in contenders:
            raced = race({str(size): (contender, task) for size, task in tasks.items()}, rounds, share_cache=True)
            curves[contender] = {}
            for size, task in tasks.items():
                found = raced[str(size)]
                if "seconds" in found:  # the last batch of an epoch may be smaller: its examples count as what they are
                    each = task.batch if contender == LIMIT else task.examples / found["steps"]
                    found["seconds"] = [seconds / each for seconds in found["seconds"]]
                curves[contender][str(size)] = found
        results[name] = curves
    return results

"""Steps a second of one process and of two, one thread each, on the same global batch: ``python benchmarks/scaling.py``.

Contenders take turns, each in fresh processes, and the figure is the median of the rounds. It prints the table of
docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist

import xhat
from xhat.ranks import joined

MODELS = {
    "784-400-20": {"shape": (1, 28, 28), "latent": 20, "hidden": [400], "likelihood": "bernoulli", "batch": 256},
    "convolutional, 3×64×64": {"shape": (3, 64, 64), "latent": 32, "network": "conv", "likelihood": "normal", "batch": 64},
}
CONTENDERS = {"1 process × 1 thread": (1, 1), "1 process × 2 threads": (1, 2), "2 processes × 1 thread": (2, 1)}
WARM = 10  # steps before the clock starts


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each contender (published: at least 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each is timed for")
    parser.add_argument("--engine", default="eager", choices=["eager", "compiled"])
    parser.add_argument("--work", choices=[*MODELS, "sum"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work == "sum":
        summed()
    elif given.work:
        trained(given.work, given.seconds, given.engine)
    else:
        race(given.rounds, given.seconds, given.engine)


def race(rounds: int, seconds: float, engine: str) -> None:
    """Print the medians and the ranges."""
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, engine {engine}, {rounds} rounds of {seconds:g} s each\n")
    print("| model | global batch | " + " | ".join(CONTENDERS) + " | efficiency of 2 processes |")
    print("|---|---|" + "---|" * (len(CONTENDERS) + 1))
    for name, options in MODELS.items():
        found: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
        for _ in range(rounds):
            for contender, (processes, threads) in CONTENDERS.items():
                found[contender].append(started(processes, threads, name, seconds, engine)["steps"])
        middle = {contender: statistics.median(values) for contender, values in found.items()}
        cells = [f"{middle[c]:.1f} steps/s ({min(values):.1f} to {max(values):.1f})" for c, values in found.items()]
        efficiency = middle["2 processes × 1 thread"] / middle["1 process × 1 thread"] / 2
        print(f"| {name} | {options['batch']} | " + " | ".join(cells) + f" | {efficiency:.0%} |", flush=True)
    sums = [started(2, 1, "sum", seconds, engine) for _ in range(rounds)]
    print("\nOne sum over two processes (gloo):", end=" ")
    medians = {size: statistics.median(times[size] for times in sums) for size in sums[0]}
    print(", ".join(f"{int(size) / 2**20:.3g} MiB in {1e3 * value:.2f} ms" for size, value in medians.items()))


def started(processes: int, threads: int, work: str, seconds: float, engine: str) -> dict[str, float]:
    """What fresh processes measure."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launch, __file__, "--work", work, "--seconds", str(seconds), "--engine", engine]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(told.strip().splitlines()[-1])


def trained(name: str, seconds: float, engine: str) -> None:
    """Steps a second of training; the first process tells."""
    options = dict(MODELS[name])
    batch = options.pop("batch")
    torch.manual_seed(0)
    x = torch.rand(20 * batch, *options["shape"]).round()
    model = xhat.build("vae", **options)
    began, steps = 0.0, 0
    for step in xhat.train(model, x, epochs=10**6, batch_size=batch, engine=engine):
        if step.step == WARM:
            began = time.perf_counter()
        # The same number everywhere, so that all leave after the same step
        if step.step > WARM and step.step % 20 == 0 and _over(time.perf_counter() - began > seconds):
            steps = step.step - WARM
            break
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"steps": steps / (time.perf_counter() - began)}))


def _over(over: bool) -> bool:
    with joined() as ranks:
        return ranks.any(over)


def summed() -> None:
    """Seconds of a sum over the processes, by the bytes of what is summed."""
    times = {}
    with joined() as ranks:
        for size in (2**12, 2**20, 2**22, 2**24, 2**26):
            x = torch.zeros(size // 4)
            for _ in range(3):
                ranks.add([x])
            dist.barrier()
            count = max(5, min(500, 2**28 // size))
            began = time.perf_counter()
            for _ in range(count):
                ranks.add([x])
            times[size] = (time.perf_counter() - began) / count
        if ranks.first:
            print(json.dumps(times))


if __name__ == "__main__":
    main()

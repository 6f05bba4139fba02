"""How long many seeds take at once, against one alone.

    python benchmarks/many_seeds.py [ROUNDS] [SEEDS] [EPOCHS]

Trains the recipe vae on digits with its default options, once with ``xhat.fit`` and once with SEEDS seeds in one
``xhat.fit_many``, in turn, ROUNDS times after a round that is not counted; then the same with one hidden layer of 64, where the
arithmetic of one model does not fill a processor. Each time is from the call to the return: checks, validation and keeping the
best weights included. Prints medians, the smallest and the largest, and the median of the rounds' ratios; then the bound that
each way ends with, which must agree.
"""

import statistics
import sys
import time
from typing import Any

import torch

import xhat

SETTINGS: dict[str, Any] = {"progress": False}


def measured(data: Any, options: dict[str, Any], rounds: int, seeds: int, epochs: int) -> tuple[str, float, float]:
    """A row of the table, and the mean bounds of many and of one."""

    def build(seed: int) -> xhat.Model:
        return xhat.build("vae", shape=data.shape, **options)

    one, many = [], []
    bounds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        began = time.perf_counter()
        torch.manual_seed(turn)
        history = xhat.fit(build(turn), data.train, data.valid, seed=turn, epochs=epochs, **SETTINGS)
        between = time.perf_counter()
        result = xhat.fit_many(build, data.train, data.valid, seeds=seeds, epochs=epochs, **SETTINGS)
        if turn:  # the first round loads code
            one.append(between - began)
            many.append(time.perf_counter() - between)
            bounds[0].append(history.best["valid_elbo"])
    bounds[1].extend(member.history.best["valid_elbo"] for member in result.members)
    ratios = [b / a for a, b in zip(one, many, strict=True)]
    name = ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults"
    cells = [f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (one, many, ratios)]
    return f"| {name} | " + " | ".join(cells) + " |", statistics.mean(bounds[0]), statistics.mean(bounds[1])


def main(rounds: int = 5, seeds: int = 16, epochs: int = 20) -> None:
    data = xhat.load_data("digits")
    print(f"digits, {epochs} epochs, {torch.get_num_threads()} threads, {rounds} rounds: median (smallest to largest)\n")
    print(f"| vae | one, s | {seeds} seeds, s | ratio |\n|---|---|---|---|")
    rows = [measured(data, options, rounds, seeds, epochs) for options in ({}, {"hidden": [64]})]
    for row, _, _ in rows:
        print(row)
    print("\nmean validation bound, nats, one at a time and all at once: " + "; ".join(f"{a:.2f}, {b:.2f}" for _, a, b in rows))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))

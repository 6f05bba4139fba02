"""What is measured of a trained model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.tables import pythae_side
from benchmarks.tables.study import Figures
from torch import Tensor

import xhat


def nats(log_px: Tensor) -> tuple[float, float]:
    """The mean over examples and its standard error."""
    return float(log_px.mean()), float(log_px.std() / len(log_px) ** 0.5)


def evidence(samples: int, examples: int | None = None) -> Callable[[xhat.Model, Any], Figures]:
    """NLL by importance sampling, the ELBO, and the active units (variance of the posterior's mean above 0.01)."""

    def measure(model: xhat.Model, split: Any) -> Figures:
        # The fixed binarisation's test images are sorted by digit: some of them are drawn.
        order = torch.randperm(len(split.test), generator=torch.Generator().manual_seed(0))
        test = split.test if examples is None else split.test[order[:examples]]
        torch.manual_seed(1)
        found = xhat.log_likelihood(model, test, samples=samples)
        with torch.no_grad():
            elbo = torch.cat([model.elbo(part, samples=10).double() for part in test.split(200)])
            means = torch.cat([model.encode(part) for part in split.test.split(1000)]).flatten(1)
        active = float((means.var(0) > 0.01).sum())
        each = {"NLL": -found.log_px, "−ELBO": -elbo}
        return Figures({**{name: nats(values) for name, values in each.items()}, "active units": (active, 0.0)}, each)

    return measure


def bits(model: xhat.Model, split: Any) -> Figures:
    """The negative ELBO in nats and in bits per dimension, with 100 draws of the code for each image."""
    torch.manual_seed(1)
    with torch.no_grad():
        elbo = torch.cat([model.elbo(part, samples=100).double() for part in split.test.split(20)])
    dimensions = math.log(2) * split.test[0].numel()
    each = {"−ELBO": -elbo, "−ELBO, bits/dim": -elbo / dimensions}
    return Figures({name: nats(values) for name, values in each.items()}, each)


def throughput(model: xhat.Model, split: Any, images: int = 200, samples: int = 5000, rounds: int = 5) -> Figures:
    """Images a second of both, in turn, and what both find; the medians of so many rounds."""
    theirs = pythae_side.from_xhat(model, 400, 20)
    test = split.test[:images]
    torch.manual_seed(1)
    slow, fast = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with torch.no_grad():
            found = -float(theirs.get_nll(test, n_samples=samples, batch_size=100))
        between = time.perf_counter()
        own = xhat.log_likelihood(model, test, samples=samples)
        slow.append(between - began)
        fast.append(time.perf_counter() - between)
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return Figures(
        {
            "NLL": nats(-own.log_px),
            "NLL by get_nll": (found, 0.0),
            "images/s": (images / statistics.median(fast), 0.0),
            "images/s of get_nll": (images / statistics.median(slow), 0.0),
            "× get_nll": (statistics.median(ratios), (ratios[-1] - ratios[0]) / 2),
        }
    )


def improvements(models: dict[str, xhat.Model], split: Any) -> dict[str, Figures]:
    """What can be had of a trained model without training it again: a prior fitted to its codes, a refined posterior."""
    base, measured = models["base"], evidence(500, 2000)
    found = {}
    for kind in ("mixture", "flow"):
        fitted = xhat.fit_prior(base, split.train, kind=kind, valid=split.valid, seed=0)
        found[f"base, {kind} prior fitted afterwards"] = measured(fitted, split)
    some = split.test[torch.randperm(len(split.test), generator=torch.Generator().manual_seed(0))[:1000]]
    refined = xhat.refine(base, some, steps=100, seed=0)
    before, after = {"−ELBO": -refined.elbo}, {"−ELBO": -refined.refined}
    found["base, the same images"] = Figures({"−ELBO": nats(before["−ELBO"])}, before)
    found["base, refined by 100 steps"] = Figures({"−ELBO": nats(after["−ELBO"])}, after)
    return found

"""Judging a stage of training on examples that it is not trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xhat.data import Examples
from xhat.data.streams.order import InOrder
from xhat.models.base import Model, Stage, quiet
from xhat.objectives import Terms
from xhat.ranks import Ranks, stream_seed

CHUNK = 1000  # examples at once, and
ELEMENTS = 20_000_000  # numbers at once that the likelihood makes for them


def validate(model: Model, stage: Stage, x: Examples, seed: int, shards: int, ranks: Ranks) -> dict[str, float]:
    """Means over examples of the loss and the measures, with random numbers of their own: the same at each epoch.

    Args:
        model: whose stage it is.
        stage: what is judged.
        x: the examples, the same in every process.
        seed: of the draws.
        shards: with more than one, each process does a part of the work.
        ranks: the processes.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with quiet(stage.module), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        # Judged by what the objective will be: weights that were best while the KL cost nothing are not wanted back.
        stage.objective.at(math.inf)
        chunk = max(1, min(CHUNK, ELEMENTS // (model.numbers * stage.objective.samples)))
        if shards > 1:
            return _together(model, stage, x, min(chunk, math.ceil(len(x) / shards)), seed, ranks)
        names: list[str] = []
        total: Tensor | None = None  # where the model is, and read once: each reading waits for a device
        for batch in x.batched(chunk):
            terms: Terms = stage.module(model.batch(batch).bare)
            names = ["loss", *terms.measures]
            means = torch.stack([values.double().sum() for values in (terms.loss, *terms.measures.values())]) / len(x)
            total = means if total is None else total + means
    return {} if total is None else dict(zip(names, total.tolist(), strict=True))


def _together(model: Model, stage: Stage, x: Examples, chunk: int, seed: int, ranks: Ranks) -> dict[str, float]:
    """The same, of which each process does a part; each chunk's random numbers are its own, whoever draws them."""
    bounds = [(start, min(start + chunk, len(x))) for start in range(0, len(x), chunk)]
    own = list(ranks.mine(len(bounds)))
    # As many chunks in each process, for weights in pieces are gathered by all: some come twice, and count once. From such a one
    # a process without a chunk of its own learns what there is to add up.
    most = math.ceil(len(bounds) / ranks.world)
    chosen = own + [0] * (most - len(own))
    names: list[str] = []
    total = torch.zeros(1, dtype=torch.float64)
    for place, (number, batch) in enumerate(zip(chosen, x.fed(InOrder(len(x)), [bounds[n] for n in chosen]), strict=True)):
        torch.manual_seed(stream_seed(seed, number))
        terms: Terms = stage.module(model.batch(batch).bare)
        names = ["loss", *terms.measures]
        sums = torch.stack([values.double().sum().cpu() for values in (terms.loss, *terms.measures.values())])
        total = total + (sums if place < len(own) else torch.zeros_like(sums))
    ranks.add([total])
    return dict(zip(names, (total / len(x)).tolist(), strict=True))

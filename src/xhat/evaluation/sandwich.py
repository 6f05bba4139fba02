"""How good an estimate of log p(x) is, seen on data of the model's own, where bounds hold it from both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.data import Batch, as_examples
from xhat.errors import ConfigError, whole_number
from xhat.evaluation.annealed import Annealing
from xhat.evaluation.evidence import ELEMENTS, block_size
from xhat.evaluation.importance import Importance
from xhat.evaluation.result import Measure, measure
from xhat.evaluation.spread import Spread
from xhat.evaluation.weights import averaged
from xhat.heap import kept_heap
from xhat.models.base import Model, quiet
from xhat.ranks import Ranks, place


class Bounds(NamedTuple):
    """Bounds of log p(x) for each simulated example, each ``(B,)`` in float64, in nats.

    ``lower`` is at most log p(x) in expectation, ``upper`` at least; ``importance`` is a lower bound, too.
    """

    lower: Tensor
    upper: Tensor
    importance: Tensor


class Sandwich(NamedTuple):
    """Mean log p(x) of simulated examples between two bounds, in nats.

    The standard errors of the three values are those of drawing these examples; those of the two gaps, in which the examples
    cancel, are what the bounds are to be judged by.

    Attributes:
        examples: N.
        chains: of annealing, for each example.
        steps: of annealing.
        samples: K of importance sampling.
        lower: the annealed estimate; its expectation is at most log p(x).
        upper: that of the chains run backwards from the code that made x; its expectation is at least log p(x).
        importance: the importance-sampled estimate.
        gap: upper - lower: no more than this is the annealed estimate too low.
        importance_gap: upper - importance: no more than this is importance sampling too low.
    """

    examples: int
    chains: int
    steps: int
    samples: int
    lower: Measure
    upper: Measure
    importance: Measure
    gap: Measure
    importance_gap: Measure

    def __str__(self) -> str:
        rows = [
            ("simulated examples", f"{self.examples}"),
            (f"log p(x) at least, nats ({self.chains} chains, {self.steps} steps)", str(self.lower)),
            ("log p(x) at most, nats", str(self.upper)),
            (f"importance-sampled, nats, K = {self.samples}", str(self.importance)),
            ("between the bounds, nats", str(self.gap)),
            ("importance sampling too low by at most, nats", str(self.importance_gap)),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@kept_heap()
def sandwich(
    model: Model,
    examples: int = 100,
    *,
    chains: int = 16,
    steps: int = 100,
    leapfrog: int = 10,
    start: str = "posterior",
    samples: int = 500,
    seed: int = 0,
    elements: int = ELEMENTS,
    progress: Callable[[int], None] | None = None,
) -> Sandwich:
    r"""Bounds of log p(x) from below and from above, on examples that the model makes itself.

    With :math:`z \sim p(z)`, :math:`x \sim p(x|z)`, that z is an exact draw from p(z|x). Annealed chains from the start give
    weights w with E[w] = p(x); the same chains run backwards from z give weights with :math:`E[1/w] = 1/p(x)`. So

    .. math:: E \log \frac1S \sum_s w_s \;\le\; E \log p(x) \;\le\; -E \log \frac1S \sum_s \frac{1}{w_s} .

    Where the two meet, the estimate is right; what it is worth on real data follows as far as these are like the model's own.

    Args:
        model: a model with a prior and continuous codes.
        examples: N, how many are simulated.
        chains: S, forwards and backwards, for each example.
        steps: of annealing.
        leapfrog: steps of each trajectory.
        start: ``"posterior"`` or ``"prior"``.
        samples: K of importance sampling, which is compared.
        seed: of everything; the caller's random numbers are left alone.
        elements: numbers that the likelihood makes at once.
        progress: called with the number of examples after each batch.

    Raises:
        ConfigError: the model has no prior, or codes that are discrete or bounded; a number below 1, examples below 2; several
            processes.

    Source: Grosse, Ghahramani & Adams (2015).

    >>> import xhat
    >>> model = xhat.build("vae", shape=(4,), latent=2, hidden=[8], likelihood="bernoulli")
    >>> result = sandwich(model, examples=10, chains=2, steps=5)
    >>> abs(result.gap.value) < 1
    True
    """
    model.need_bound("have a likelihood of x")
    for name, value, least in (("examples", examples, 2), ("chains", chains, 1), ("samples", samples, 1)):
        whole_number(name, value, least)
    if place()[1] > 1:
        raise ConfigError("sandwich runs in one process: start it without torchrun")
    settings = Annealing(steps, leapfrog, start)
    parts: list[Bounds] = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        size = block_size(model, elements=elements)
        for done in range(0, examples, size):
            count = min(size, examples - done)
            z, batch = simulated(model, count)
            parts.append(bounds(model, z, batch, settings, chains, samples, elements))
            if progress is not None:
                progress(count)
    lower, upper, sampled = (torch.cat(column) for column in zip(*parts, strict=True))
    measures = (measure(values) for values in (lower, upper, sampled, upper - lower, upper - sampled))
    return Sandwich(examples, chains, steps, samples, *measures)


def simulated(model: Model, count: int, condition: Tensor | None = None) -> tuple[Tensor, Batch]:
    """Codes from the prior and examples made of them: draws from p(z, x), or p(z, x|c) under conditions ``(count, C)``."""
    with quiet(model):
        posed = model.pose(model.blank(count)._replace(condition=condition))
        p = posed.prior
        z = p.sample() if p.batch_shape else p.sample((count,))
        return z, Batch(posed.likelihood(z).sample(), condition=condition)


def bounds(
    model: Model, z: Tensor, batch: Batch, settings: Annealing, chains: int, samples: int, elements: int = ELEMENTS
) -> Bounds:
    """The bounds of examples x, of whose codes z are draws from p(z|x)."""
    x = batch.x
    chunk = max(1, elements // (len(x) * model.numbers))
    alone = Spread(as_examples(x.cpu()), len(x), Ranks(), None)
    with quiet(model):
        path = settings.path(model, batch, chunk)
        lower = averaged(path.forward, x, chains, chunk, alone, 0).log_px
        upper = -averaged(lambda count: -path.reverse(z.expand(count, *z.shape)), x, chains, chunk, alone, 0).log_px
        importance = averaged(Importance().begin(model, batch, chunk), x, samples, chunk, alone, 0).log_px
    return Bounds(lower.cpu(), upper.cpu(), importance.cpu())

"""How an estimator is proven: its mean over many repeats, or over every draw that it can make.

Where an estimator's own randomness is finite, all of it is laid out along the batch, one outcome a row, with the outcomes'
probabilities as weights: the mean and the variance then come out exactly, not by chance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from catalogue import CONTEXT, EXPECTATIONS, F64, GRADIENTS, OF_BOUNDS, Expectation
from xhat.gradients import Gradient, antithetic, components, expectation, without_replacement

REPEATS = 4000


def leaves(row: Expectation) -> list[Tensor]:
    return [p.clone().requires_grad_() for p in row.parameters]


def away(estimates: Tensor, exact: Tensor | float) -> Tensor:
    """How many standard errors the mean of independent estimates (R, …) is off, coordinate by coordinate."""
    estimates = estimates.detach()
    stderr = estimates.std(0) / math.sqrt(len(estimates))
    return (estimates.mean(0) - exact).abs() / (stderr + 1e-9)


def within(estimates: Tensor, exact: Tensor | float, errors: float = 4.0) -> None:
    """Independent estimates (R, …) have this mean."""
    off = away(estimates, exact)
    assert (off <= errors).all(), f"off by {off.max():.1f} standard errors"


FITS = [
    (name, law)
    for name, law in itertools.product(GRADIENTS, EXPECTATIONS)
    if name not in OF_BOUNDS and GRADIENTS[name]().lacks(EXPECTATIONS[law].law(*leaves(EXPECTATIONS[law]))) is None
]
UNBIASED = [pair for pair in FITS if GRADIENTS[pair[0]]().unbiased]
BIASED = [pair for pair in FITS if not GRADIENTS[pair[0]]().unbiased]


def shown(estimator: Gradient, q: td.Distribution) -> Gradient:
    """The same, which has seen a context where it wants one."""
    like = next(iter(estimator.parameters()), torch.zeros(()))
    estimator.see(torch.linspace(-1, 1, CONTEXT[0], dtype=like.dtype).expand(*q.batch_shape, *CONTEXT))
    return estimator


class Repeated(NamedTuple):
    """Independent estimates, (R, …), and what their means must be."""

    values: Tensor
    slopes: tuple[Tensor, ...]
    exact_value: Tensor
    exact_slopes: tuple[Tensor, ...]


def repeated(row: Expectation, estimator: Gradient, samples: int, repeats: int = REPEATS, calls: int = 2) -> Repeated:
    """Each repeat is one row of a batch, with parameters of its own: a baseline is shared, gradients are not."""
    at = leaves(row)
    exact = row.exact(*at)
    wide = [p.expand(repeats, *p.shape).clone().requires_grad_() for p in row.parameters]
    value = exact
    for _ in range(calls):  # a lagged baseline has something to lag behind
        q = row.law(*wide)
        value = expectation(lambda z: row.f(z, *wide), q, shown(estimator, q), samples)
    assert value.shape == (repeats, *exact.shape)
    return Repeated(value.detach(), torch.autograd.grad(value.sum(), wide), exact.detach(), torch.autograd.grad(exact.sum(), at))


# Draws that the test chooses


class ForcedBernoulli(td.Bernoulli):
    """Draws that the test chooses, ``(S, *batch)``."""

    def sample(self, sample_shape=()):
        return self.forced


class Exactly(NamedTuple):
    """Exact mean and variance of an estimate of a gradient, and the mean of its value."""

    mean: Tensor
    variance: Tensor
    value: Tensor


def exactly(
    estimator: Gradient, samples: int, logits: Tensor, law: Callable[[Tensor], td.Distribution], f: Callable, weight: Tensor
) -> Exactly:
    """Sums over all that can be drawn: one outcome a row, with these probabilities."""
    assert weight.sum().item() == pytest.approx(1, abs=1e-12)
    wide = logits.expand(len(weight), *logits.shape).clone().requires_grad_()
    q = law(wide)
    value = expectation(lambda z: f(z, wide), q, shown(estimator, q), samples)
    (slopes,) = torch.autograd.grad(value.sum(), wide)
    share = weight.reshape(-1, *(1,) * logits.ndim)
    mean = (share * slopes).sum(0)
    return Exactly(mean, (share * slopes.square()).sum(0) - mean.square(), (weight * value.detach()).sum())


def independent(logits: Tensor) -> td.Distribution:
    return td.Independent(td.Bernoulli(logits=logits), 1)


def one_hots(logits: Tensor) -> td.Distribution:
    return td.Independent(td.OneHotCategorical(logits=logits), 1)


def forced_bits(monkeypatch: pytest.MonkeyPatch, logits: Tensor, samples: int) -> Tensor:
    """Independent draws of n bits: all of them."""
    draws = torch.tensor(list(itertools.product((0.0, 1.0), repeat=samples * len(logits))), dtype=F64)
    draws = draws.reshape(-1, samples, len(logits)).movedim(1, 0)
    p = logits.sigmoid()
    monkeypatch.setattr(td.Bernoulli, "sample", lambda self, shape=(): draws)
    monkeypatch.setattr(components.Bits, "sample", lambda self, count: draws)
    both = torch.stack([1 - draws, draws], -1)
    monkeypatch.setattr(components.Categories, "sample", lambda self, count: both)
    return (draws * p + (1 - draws) * (1 - p)).prod(-1).prod(0)


def forced_categories(monkeypatch: pytest.MonkeyPatch, logits: Tensor, samples: int) -> Tensor:
    """Independent draws of n one-hot vectors: all of them."""
    variables, count = logits.shape
    index = torch.tensor(list(itertools.product(range(count), repeat=samples * variables)))
    draws = torch.nn.functional.one_hot(index, count).to(F64).reshape(-1, samples, variables, count).movedim(1, 0)
    monkeypatch.setattr(td.OneHotCategorical, "sample", lambda self, shape=(): draws)
    monkeypatch.setattr(components.Categories, "sample", lambda self, samples: draws)
    return (draws * logits.softmax(-1)).sum(-1).prod(-1).prod(0)


def forced_uniforms(monkeypatch: pytest.MonkeyPatch, logits: Tensor, samples: int) -> Tensor:
    """The uniform numbers of antithetic pairs: Gauss-Legendre nodes on each piece on which no bit changes."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(3))
    grids, shares = [], []
    for p in logits.sigmoid().tolist():
        low, high = sorted((p, 1 - p))
        ends = [(a, b) for a, b in ((0.0, low), (low, high), (high, 1.0)) if b > a]
        grids.append(torch.cat([a + (b - a) * (nodes + 1) / 2 for a, b in ends]))
        shares.append(torch.cat([(b - a) * weights / 2 for a, b in ends]))
    pairs = samples // 2
    u = torch.cartesian_prod(*grids * pairs).reshape(-1, pairs, len(logits)).movedim(1, 0)
    weight = torch.cartesian_prod(*shares * pairs).reshape(len(u[0]), -1).prod(-1)
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: u)
    return weight


def patterns(rare: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Every way in which S repelled draws can hit an event, ``(2^S, S)``, and its probability, ``(2^S, *rare)``.

    A given m of the coordinates of a flat Dirichlet all exceed 1 - s with (1 - m(1-s))^(S-1), where that is not negative;
    inclusion and exclusion does the rest.
    """
    hits = torch.tensor(list(itertools.product((False, True), repeat=samples)))
    s = rare ** (1 / (samples - 1))
    at_least = [(1 - m * (1 - s)).clamp(min=0) ** (samples - 1) for m in range(samples + 1)]
    probability = []
    for count in hits.sum(1).tolist():
        terms = [(-1) ** k * math.comb(samples - count, k) * at_least[count + k] for k in range(samples - count + 1)]
        probability.append(torch.stack(terms).sum(0))
    return hits, torch.stack(probability)


def forced_repelled(monkeypatch: pytest.MonkeyPatch, rare: Tensor, samples: int) -> Tensor:
    """All outcomes of :func:`antithetic._repelled` for events of probabilities ``rare``, ``(n,)`` or more axes."""
    hits, probability = patterns(rare, samples)
    flat = probability.reshape(len(hits), -1)
    rows = torch.cartesian_prod(*[torch.arange(len(hits))] * flat.shape[1]).reshape(-1, flat.shape[1])
    drawn = hits[rows].movedim(-1, 0).reshape(samples, -1, *rare.shape)
    monkeypatch.setattr(antithetic, "_repelled", lambda rare, count: drawn)
    return flat.gather(0, rows).prod(1)


def forced_sets(monkeypatch: pytest.MonkeyPatch, points: Tensor, mass: Tensor, samples: int, given: Sequence[int] = ()) -> Tensor:
    """All ordered draws without replacement from ``points``, ``(N, n)`` category numbers, after those ``given`` are gone."""
    left = [i for i in range(len(points)) if i not in given]
    orders = list(itertools.permutations(left, samples))
    weight = []
    for order in orders:
        rest, share = 1 - sum(mass[i].item() for i in given), 1.0
        for i in order:
            share, rest = share * mass[i].item() / rest, rest - mass[i].item()
        weight.append(share)
    drawn = points[torch.tensor(orders)].movedim(1, 0)
    turn = itertools.count()
    monkeypatch.setattr(without_replacement, "_draw_outside", lambda logits, taken: drawn[next(turn)][None])
    return torch.tensor(weight, dtype=F64)

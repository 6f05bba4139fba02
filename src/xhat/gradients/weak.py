"""Measure-valued gradients: each parameter's derivative as a difference of two expectations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Normal,
    OneHotCategorical,
    Poisson,
    Weibull,
)

from xhat.distributions import Levels


class Pair(NamedTuple):
    r"""One parameter's weak derivative, :math:`\nabla_\theta q = c\,(q_+ - q_-)`, elementwise.

    ``draw(samples)`` gives coupled draws of the two laws, ``(S, *batch)`` each.
    """

    parameter: Tensor
    constant: Tensor
    draw: Callable[[int], tuple[Tensor, Tensor]]


def _wait(like: Tensor, samples: int) -> Tensor:
    return torch.empty((samples, *like.shape), dtype=like.dtype, device=like.device).exponential_()


def _normal(q: Normal) -> Iterator[Pair]:
    loc, scale = q.loc.detach(), q.scale.detach()

    def along_loc(samples: int) -> tuple[Tensor, Tensor]:
        rayleigh = (2 * _wait(loc, samples)).sqrt()
        return loc + scale * rayleigh, loc - scale * rayleigh

    def along_scale(samples: int) -> tuple[Tensor, Tensor]:
        # A double-sided Maxwell, and times a uniform number a Normal.
        size = (torch.randn((3, samples, *loc.shape), dtype=loc.dtype, device=loc.device).square().sum(0)).sqrt()
        sided = torch.where(torch.rand_like(size) < 0.5, -size, size)
        return loc + scale * sided, loc + scale * sided * torch.rand_like(size)

    yield Pair(q.loc, 1 / (scale * math.sqrt(2 * math.pi)), along_loc)
    yield Pair(q.scale, 1 / scale, along_scale)


def _exponential(q: Exponential) -> Iterator[Pair]:
    rate = q.rate.detach()

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        first = _wait(rate, samples) / rate
        return first, first + _wait(rate, samples) / rate

    yield Pair(q.rate, 1 / rate, draw)


def _gamma(q: Gamma) -> Iterator[Pair]:
    shape, rate = q.concentration.detach(), q.rate.detach()

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        first = Gamma(shape, rate, validate_args=False).sample((samples,))
        return first, first + _wait(rate, samples) / rate

    yield Pair(q.rate, shape / rate, draw)


def _weibull(q: Weibull) -> Iterator[Pair]:
    scale, shape = q.scale.detach(), q.concentration.detach()

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        first = _wait(scale, samples)
        # A larger scale is a smaller rate of z^k, so the two change places.
        return scale * (first + _wait(scale, samples)) ** (1 / shape), scale * first ** (1 / shape)

    yield Pair(q.scale, shape / scale, draw)


def _poisson(q: Poisson) -> Iterator[Pair]:
    rate = q.rate.detach()

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        count = torch.poisson(rate.expand(samples, *rate.shape))
        return count + 1, count

    yield Pair(q.rate, torch.ones_like(rate), draw)


CONTINUOUS: dict[type[Distribution], Callable[..., Iterator[Pair]]] = {
    Normal: _normal,
    Exponential: _exponential,
    Gamma: _gamma,
    Weibull: _weibull,
    Poisson: _poisson,
}
FINITE = (Bernoulli, Categorical, OneHotCategorical, Levels)
_FIXED = {Gamma: "concentration", Weibull: "concentration"}


def has_weak_derivative(base: Distribution) -> bool:
    """Whether every parameter of a law that is learned has a weak derivative with constants that are known."""
    if isinstance(base, FINITE):
        return True
    fixed = _FIXED.get(type(base))
    return type(base) in CONTINUOUS and (fixed is None or not getattr(base, fixed).requires_grad)

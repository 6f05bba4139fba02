r"""Estimators whose draws avoid each other: ARM, DisARM, ARMS and CARMS.

Draws of one element that repel each other tell more about f than independent ones. Each draw alone still has the law q, so the
value stays honest; what their correlation does to the leave-one-out gradient is divided out exactly.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from xhat.gradients.base import Function, Gradient, honest, lift, total
from xhat.gradients.components import Categories, categories_of, components_of
from xhat.gradients.reduction import Reduction


class _Paired(Gradient):
    """What ARM and DisARM share: pairs of bits from one uniform number each, which lands on opposite sides."""

    requires = frozenset({"bernoulli"})

    @property
    def fewest_samples(self) -> int:
        return 2

    @property
    def takes(self) -> str:
        return "takes an even number of samples, antithetic pairs"

    def usable(self, samples: int) -> int:
        return max(2, samples + samples % 2)

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    @abc.abstractmethod
    def weight(self, u: Tensor, p: Tensor, b: Tensor, other: Tensor) -> Tensor:
        """What multiplies f(b) − f(other) in the gradient of each logit, from the pairs and what made them."""

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        bits = components_of(q)
        with torch.no_grad():
            u = torch.rand((samples // 2, *bits.logits.shape), dtype=bits.logits.dtype, device=bits.logits.device)
            p = bits.logits.sigmoid()
            z = torch.cat([u > 1 - p, u < p]).to(p.dtype)
        values = f(z)
        with torch.no_grad():
            above, below = values.chunk(2)
            coefficient = (lift(above - below, bits.axes) * self.weight(u, p, *z.chunk(2))).mean(0)
        return honest(reduce(values), total(coefficient * bits.logits, bits.axes))


class ARM(_Paired):
    r"""Augment-REINFORCE-merge, for Bernoulli elements: an antithetic pair from one uniform number for each element.

    .. math:: \nabla_a E[f] = E_u[(f(1[u > \sigma(-a)]) - f(1[u < \sigma(a)]))\,(u - \tfrac12)]

    ``samples`` is twice the number of pairs. The uniform number stays in the weight, so that even a bit that is certain gets
    noise (of mean zero): DisARM is rid of it.

    Source: Yin & Zhou (2018).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z, torch.distributions.Bernoulli(logits=logits), "arm", samples=2).shape
    torch.Size([4])
    """

    unbiased = True

    def weight(self, u: Tensor, p: Tensor, b: Tensor, other: Tensor) -> Tensor:
        return u - 0.5


class DisARM(_Paired):
    r"""ARM with the uniform number integrated out, also known as U2G: the pair's bits are all that is left of it.

    .. math:: g_i = \tfrac12 (f(b) - f(\tilde b))\,(-1)^{\tilde b_i}\, 1[b_i \ne \tilde b_i]\, \sigma(|a_i|)

    ``samples`` is twice the number of independent pairs.

    Source: Dong, Mnih & Tucker (2020); Yin, Ho, Yan, Qian & Zhou (2020).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z, torch.distributions.Bernoulli(logits=logits), "disarm", samples=2).shape
    torch.Size([4])
    """

    unbiased = True

    def weight(self, u: Tensor, p: Tensor, b: Tensor, other: Tensor) -> Tensor:
        return (b - other) * torch.maximum(p, 1 - p) / 2


class ARMS(Gradient):
    r"""n mutually antithetic draws of Bernoulli elements, from a Dirichlet copula.

    .. math:: g = \frac{1}{n-1} \sum_i (f(b_i) - \bar f)\, b_i \cdot \frac{1}{1 - \rho}

    elementwise, where ρ is the exact correlation of two of an element's bits. At n = 2 it is DisARM.

    Source: Dimitriev & Zhou (2021).

    >>> import xhat
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> xhat.expectation(lambda z: z, torch.distributions.Bernoulli(logits=logits), "arms", samples=5).shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"bernoulli"})

    @property
    def fewest_samples(self) -> int:
        return 2

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        bits = components_of(q)
        with torch.no_grad():
            rare = (-bits.logits.abs()).sigmoid()
            hit = _repelled(rare, samples)
            z = torch.where(bits.logits < 0, hit, ~hit).to(rare.dtype)
        values = f(z)
        with torch.no_grad():
            # p(1-p)(1-ρ) is the probability that one of a pair of draws is rare and the other is not, halved.
            parted = rare - _both(rare, samples)
            weight = torch.where(parted > 0, rare * (1 - rare) / parted, 1.0)
            centred = lift(values - values.mean(0), bits.axes)
            coefficient = (centred * z).sum(0) * weight / (samples - 1)
        return honest(reduce(values), total(coefficient * bits.logits, bits.axes))


class CARMS(Gradient):
    r"""ARMS for categories: each is broken into bits, the rarest first, and the bits of n draws repel each other.

    .. math:: g = \frac{1}{n(n-1)} \sum_{i \ne j} (f(z_i) - f(z_j))\,
              \frac{q(z_i)\, q(z_j)}{q_2(z_i, z_j)}\, \nabla \log q(z_i)

    elementwise, over pairs that differ; :math:`q_2` is the exact probability of a pair of an element's draws. With the rarest
    category first no bit is likelier than one half, so that every pair of different categories can be drawn.

    Source: Dimitriev & Zhou (2021).

    >>> import xhat
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> q = torch.distributions.OneHotCategorical(logits=logits)
    >>> xhat.expectation(lambda z: z[..., 0], q, "carms", samples=3).shape
    torch.Size([4])
    """

    unbiased = True
    requires = frozenset({"components"})

    @property
    def fewest_samples(self) -> int:
        return 2

    def evaluations(self, samples: int, q: Distribution | None = None) -> int:
        return samples

    def estimate(self, f: Function, q: Distribution, samples: int, reduce: Reduction) -> Tensor:
        categories = categories_of(q)
        with torch.no_grad():
            place, ratio = _broken(categories, samples)
            order = categories.logits.argsort(-1)
            index = order.expand(samples, *order.shape).gather(-1, place.unsqueeze(-1)).squeeze(-1)
            code = categories.one_hot(index)
        values = f(categories.value(code))
        with torch.no_grad():
            elements = categories.axes - 1
            first = torch.minimum(place.unsqueeze(0), place.unsqueeze(1))
            pairs = ratio.expand(samples, samples, *ratio.shape).gather(-1, first.unsqueeze(-1)).squeeze(-1)
            pairs = torch.where(place.unsqueeze(0) != place.unsqueeze(1), pairs, 0.0)
            gaps = lift(values.unsqueeze(1) - values.unsqueeze(0), elements)
            signal = (gaps * pairs).sum(1) / (samples * (samples - 1))
        chosen = _chosen(categories, index)
        return honest(reduce(values), total((signal * chosen).sum(0), elements))


def _chosen(categories: Categories, index: Tensor) -> Tensor:
    """log q of each element's category; a product with the one-hot code would be 0 · ∞ where a category has probability 0."""
    logits = categories.logits.expand(*index.shape, categories.count)
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _repelled(rare: Tensor, count: int) -> Tensor:
    """Whether each of ``count`` draws hits an event of probability ``rare`` ≤ ½; a Dirichlet makes them repel each other.

    The coordinates of a Dirichlet(1, …, 1) sum to one, so that few can be large at once; each exceeds s with (1-s)^(n-1).
    """
    wait = torch.empty((count, *rare.shape), dtype=rare.dtype, device=rare.device).exponential_()
    return wait / wait.sum(0) > 1 - rare ** (1 / (count - 1))


def _both(rare: Tensor, count: int) -> Tensor:
    """The probability that two given draws of :func:`_repelled` both hit."""
    return (2 * rare ** (1 / (count - 1)) - 1).clamp(min=0) ** (count - 1)


def _broken(categories: Categories, samples: int) -> tuple[Tensor, Tensor]:
    """Draws as places in the order of rising probability, ``(S, *batch, *elements)``; a pair's q q / q₂ by its first place."""
    ordered = categories.logits.sort(-1).values
    # Stopping here, having come so far: p_c over the sum of itself and all after it, at most one half but for the last.
    rest = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    stop = torch.where(ordered > -torch.inf, (ordered - rest).exp(), 0.0)[..., :-1].clamp(max=0.5)
    hit = _repelled(stop, samples)
    place = torch.cat([hit, torch.ones_like(hit[..., :1])], -1).to(torch.uint8).argmax(-1)
    both = _both(stop, samples)
    passed = F.pad(((1 - stop).square() / (1 - 2 * stop + both))[..., :-1].cumprod(-1), (1, 0), value=1.0)
    parted = torch.where(stop > 0, stop * (1 - stop) / (stop - both), 1.0)
    ratio = passed * parted
    return place, F.pad(ratio, (0, 1))

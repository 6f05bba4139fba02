"""Continuous laws rounded to the grey levels of a picture: a Normal, and a mixture of logistics."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F
from torch.types import _size

from xhat.distributions.grid import OnGrid

ELEMENTS = 1_000_000  # numbers at once for a mean or variance, which sum over the levels

# log(sinh u / u) as a series in u², and the mean of t² under the density that is proportional to e^(-ut) on [-1, 1].
_LOG_SINH = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575, -3617 / 2605132530000)
_SECOND_MOMENT = (1 / 3, 2 / 45, -4 / 945, 2 / 4725, -4 / 93555)


def log_normal_cdf(z: Tensor) -> Tensor:
    r""":math:`\log \Phi(z)` with a derivative that is right in the far lower tail, too.

    ``torch.special.log_ndtr`` has the same values, but in float32 its derivative is 4 % off at z = -1000, and 0 from -30,000 on.

    >>> z = torch.tensor([-1e5, 0.0], requires_grad=True)
    >>> torch.autograd.grad(log_normal_cdf(z).sum(), z)
    (tensor([1.0000e+05, 7.9788e-01]),)
    """
    low = z < -1
    tail, body = torch.where(low, z, -1.0), torch.where(low, 0.0, z)
    in_tail = torch.log(0.5 * torch.special.erfcx(tail * -math.sqrt(0.5))) - 0.5 * tail.square()
    return torch.where(low, in_tail, torch.log1p(-0.5 * torch.erfc(body * math.sqrt(0.5))))


class Discretised(OnGrid, abc.ABC):
    r"""Abstract: a real number Y rounded to the nearest grey level; what lies beyond the ends goes to the ends.

    .. math:: P\left(x = \tfrac{k}{L-1}\right) = F\left(\tfrac{k + 1/2}{L-1}\right) - F\left(\tfrac{k - 1/2}{L-1}\right)

    with F the distribution function of Y, taken as 0 below the first level and as 1 above the last.
    """

    @abc.abstractmethod
    def _above(self, edges: Tensor) -> Tensor:
        """P(Y > edge), ``(n, *batch)``, for edges ``(n,)``."""

    @property
    def mean(self) -> Tensor:
        return sum((above.sum(0) for above in self._blocks()), torch.zeros_like(self._like)) / (self.levels - 1)

    @property
    def variance(self) -> Tensor:
        # A level counts the edges that Y lies above. Of two edges j < l the indicators have the covariance G_l (1 - G_j), with
        # G the probability of lying above: all terms of the sum are positive, and nothing cancels.
        total, below = torch.zeros_like(self._like), torch.zeros_like(self._like)
        for above in self._blocks():
            under = below + (1 - above).cumsum(0)
            total = total + (above * (2 * under - (1 - above))).sum(0)
            below = under[-1]
        return total / (self.levels - 1) ** 2

    def _blocks(self) -> Iterator[Tensor]:
        """The probabilities of lying above the edges between levels, some edges at a time, ``(n, *batch)``."""
        steps = self.levels - 1
        edges = (torch.arange(steps, dtype=self._like.dtype, device=self._like.device) + 0.5) / steps
        for block in edges.split(max(1, ELEMENTS // max(1, self._parameters()))):
            yield self._above(block)

    def _parameters(self) -> int:
        """Numbers that :meth:`_above` holds for each edge."""
        return self._like.numel()


class DiscretisedNormal(Discretised):
    r"""A Normal rounded to L grey levels of [0, 1].

    .. math:: P(x) = \Phi\left(\frac{x + h - \mu}{\sigma}\right) - \Phi\left(\frac{x - h - \mu}{\sigma}\right), \qquad
              h = \frac{1}{2(L-1)}

    The first level gets all below it and the last all above it, so the masses sum to 1. They are true in the far tails, where
    both Φ round to the same number, and for bins that are narrow beside σ.

    Args:
        loc: the mean μ before rounding, ``(*batch)``.
        scale: the standard deviation σ before rounding, ``(*batch)``.
        levels: the number L of grey levels, at least 2.

    Raises:
        ConfigError: fewer than 2 levels.

    Source: the decoder of the last step in Ho, Jain & Abbeel (Denoising diffusion probabilistic models, 2020).

    >>> law = DiscretisedNormal(torch.tensor(0.5), torch.tensor(0.1), levels=3)
    >>> law.log_prob(law.values).exp()
    tensor([0.0062, 0.9876, 0.0062])
    >>> round(DiscretisedNormal(torch.tensor(9.0), torch.tensor(0.1), levels=3).log_prob(torch.tensor(0.5)).item(), 2)
    -3408.46
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc, levels, validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> DiscretisedNormal:
        shape = torch.Size(batch_shape)
        law = DiscretisedNormal(self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=False)
        law._validate_args = self._validate_args
        return law

    def _log_mass(self, index: Tensor) -> Tensor:
        steps = self.levels - 1
        first, last = index <= 0, index >= steps
        centre = (index / steps - self.loc) / self.scale
        half = 0.5 / steps / self.scale
        # Φ is known with a small relative error in its lower tail only: bins on the upper side are seen in the mirror.
        centre = torch.where(last | ~(first | (centre < 0)), -centre, centre)
        upper = log_normal_cdf(centre + half)
        narrow = half < (90 * torch.finfo(half.dtype).eps) ** 0.2  # where the series' error is that of a difference
        narrow = narrow & ((centre * half).abs() < 0.5)
        # Of a bin of two ends Φ(b) (1 - e^-gap), with gap = log Φ(b) - log Φ(a), which is at least -b times the width.
        gap = upper - log_normal_cdf(centre - half)
        gap = torch.maximum(gap, -2 * half * (centre + half))
        gap = torch.where(narrow | first | last, 1.0, gap)
        wide = upper + torch.log(-torch.expm1(-gap))
        inner = torch.where(narrow, self._narrow(centre, half, narrow), wide)
        return torch.where(first | last, upper, inner)

    @staticmethod
    def _narrow(centre: Tensor, half: Tensor, chosen: Tensor) -> Tensor:
        """The log mass of a narrow bin: its width times the density's mean in it, of which the first powers suffice."""
        c, w = torch.where(chosen, centre, 0.0), torch.where(chosen, half, 1.0)
        squared = (c * w).square()
        tilt, curvature = torch.zeros_like(squared), torch.zeros_like(squared)
        for coefficient in reversed(_LOG_SINH):
            tilt = (tilt + coefficient) * squared
        for coefficient in reversed(_SECOND_MOMENT):
            curvature = curvature * squared + coefficient
        return (2 * w).log() - 0.5 * (c.square() + math.log(2 * math.pi)) + tilt - 0.5 * w.square() * curvature

    def _draw(self, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return ((self.loc + self.scale * noise) * (self.levels - 1)).round()

    def _above(self, edges: Tensor) -> Tensor:
        edges = edges.reshape(-1, *(1,) * len(self.batch_shape))
        return 0.5 + 0.5 * torch.erf((self.loc - edges) / (self.scale * math.sqrt(2)))


class LogisticMixture(Discretised):
    r"""A mixture of K logistic laws, rounded to L grey levels of [0, 1].

    .. math:: P(x) = \sum_{i=1}^K \pi_i \left[ \varsigma\left(\frac{x + h - \mu_i}{s_i}\right)
              - \varsigma\left(\frac{x - h - \mu_i}{s_i}\right) \right], \qquad h = \frac{1}{2(L-1)}

    with :math:`\varsigma` the logistic function; the first level gets all below it and the last all above it. Nothing is
    approximated where a mass is small: with b and a the two arguments,
    :math:`\log(\varsigma(b) - \varsigma(a)) = \log\varsigma(b) + \log\varsigma(-a) + \log(1 - e^{a-b})`.

    Args:
        logits: unnormalised log weights, ``(*batch, K)``.
        loc: the means μ, ``(*batch, K)``.
        scale: the scales s, ``(*batch, K)``; a component's standard deviation before rounding is :math:`\pi s / \sqrt{3}`.
        levels: the number L of grey levels, at least 2.

    Raises:
        ConfigError: fewer than 2 levels.

    Source: Salimans et al. (PixelCNN++, 2017).

    >>> law = LogisticMixture(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1]), levels=3)
    >>> law.log_prob(law.values).exp(), law.mean
    (tensor([0.4623, 0.0753, 0.4623]), tensor(0.5000))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        super().__init__(self.loc[..., 0], levels, validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> LogisticMixture:
        shape = (*batch_shape, self.loc.shape[-1])
        law = LogisticMixture(
            self.logits.expand(shape), self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=False
        )
        law._validate_args = self._validate_args
        return law

    def _log_mass(self, index: Tensor) -> Tensor:
        steps = self.levels - 1
        index = index.unsqueeze(-1)
        first, last = index <= 0, index >= steps
        centre = (index / steps - self.loc) / self.scale
        half = 0.5 / steps / self.scale
        log_p = torch.where(last, 0.0, F.logsigmoid(centre + half)) + torch.where(first, 0.0, F.logsigmoid(half - centre))
        log_p = log_p + torch.where(first | last, 0.0, torch.log(-torch.expm1(-2 * half)))
        return (self.logits + log_p).logsumexp(-1) - self.logits.logsumexp(-1)

    def _draw(self, shape: torch.Size) -> Tensor:
        components = self.logits.shape[-1]
        flat = self.logits.softmax(-1).reshape(-1, components)
        draws = shape.numel() // max(1, flat.shape[0])
        chosen = torch.multinomial(flat, max(1, draws), replacement=True).T.reshape(*shape, 1)
        loc, scale = (p.expand(*shape, components).gather(-1, chosen).squeeze(-1) for p in (self.loc, self.scale))
        uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device)
        return ((loc + scale * (uniform.log() - torch.log1p(-uniform))) * (self.levels - 1)).round()

    def _above(self, edges: Tensor) -> Tensor:
        edges = edges.reshape(-1, *(1,) * self.loc.ndim)
        return (self.logits.softmax(-1) * torch.sigmoid((self.loc - edges) / self.scale)).sum(-1)

    def _parameters(self) -> int:
        return self.loc.numel()

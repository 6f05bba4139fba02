"""Conditionals of grey levels that need a few numbers for each pixel, not one for each level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from xhat import distributions
from xhat.conditionals.base import TRANSFORMS, Headed, check_minimum, positive
from xhat.conditionals.normal import GAIN
from xhat.distributions.grid import Grid
from xhat.errors import ConfigError, whole_number

REMEDY = "set levels to the data's own number of levels or use likelihood='normal'"
WIDTH = 0.3  # the standard deviation that a law starts with, close to that of the uniform law on [0, 1]


def _check(levels: int, minimum: float) -> None:
    whole_number("levels", levels, 2)
    check_minimum(minimum)


def _check_transform(scale: str | float) -> None:
    if scale not in TRANSFORMS:
        raise ConfigError(f"scale must be one of {', '.join(TRANSFORMS)}, was {scale!r}")


def _raw(value: float, transform: str) -> float:
    """The raw number that ``transform`` makes ``value`` of."""
    return math.log(math.expm1(value)) if transform == "softplus" else math.log(value)


class DiscretisedNormal(Headed):
    r"""Independent grey levels, each a Normal rounded to the nearest of ``levels`` equally spaced values on [0, 1].

    .. math:: P(y_j) = \Phi\left(\frac{y_j + h - \mu_j}{\sigma_j}\right) - \Phi\left(\frac{y_j - h - \mu_j}{\sigma_j}\right),
              \qquad h = \frac{1}{2(L - 1)}

    The first and the last level get what lies beyond them. Where the network says 0, μ is 1/2, and σ starts at 0.3.

    Args:
        network: from the context to features.
        event: shape of one draw.
        levels: the number L of grey levels, at least 2.
        scale: how σ is made positive, ``"softplus"`` or ``"exp"``; or a number, which fixes σ.
        per: whose σ it is: ``"network"`` (a function of the context), ``"dimension"`` (one learned number for each element
            of the event) or ``"shared"`` (one learned number).
        minimum: lower bound of σ.

    Raises:
        ConfigError: fewer than 2 levels; an unknown scale or per; a number that is not positive.

    Source: Ho, Jain & Abbeel (2020).

    >>> from xhat.networks import MLP
    >>> p = DiscretisedNormal(MLP(20, [400]), event=(1, 28, 28))(torch.rand(5, 20))
    >>> p.log_prob(torch.full((5, 1, 28, 28), 128 / 255)).shape
    torch.Size([5])
    """

    remedy = REMEDY

    def __init__(
        self,
        network: nn.Module,
        event: int | Sequence[int],
        levels: int = 256,
        scale: str | float = "softplus",
        per: str = "network",
        minimum: float = 1e-4,
    ) -> None:
        _check(levels, minimum)
        fixed = isinstance(scale, int | float)
        if isinstance(scale, int | float) and not 0 < scale < math.inf:
            raise ConfigError(f"scale must be one of {', '.join(TRANSFORMS)} or a positive number, was {scale!r}")
        if not fixed:
            _check_transform(scale)
        if per not in ("network", "dimension", "shared"):
            raise ConfigError(f"per must be one of network, dimension, shared, was {per!r}")
        super().__init__(network, event, parameters=2 if per == "network" and not fixed else 1)
        self.levels, self.transform, self.per, self.minimum = levels, scale, "fixed" if fixed else per, minimum
        self.support = Grid(0.0, 1.0, levels)  # type: ignore[misc]
        if self.per in ("dimension", "shared"):
            start = torch.full(self.event if per == "dimension" else (), _raw(WIDTH, str(scale)) / GAIN)
            self.raw_scale = nn.Parameter(start)

    def law(self, raw: Tensor) -> Distribution:
        if self.per == "network":
            raw_loc, raw_scale = raw.unbind(-1 - self.event_ndim)
            scale = positive(raw_scale + _raw(WIDTH, str(self.transform)), str(self.transform), self.minimum)
        else:
            raw_loc = raw.squeeze(-1 - self.event_ndim)
            scale = self.scale(raw_loc)
        law = distributions.DiscretisedNormal(0.5 + raw_loc, scale, self.levels, validate_args=False)
        return Independent(law, self.event_ndim, validate_args=False)

    def scale(self, like: Tensor) -> Tensor:
        """σ where it does not depend on the context, ``(*event)`` or ``()``."""
        if self.per == "fixed":
            return like.new_full((), float(self.transform)).expand_as(like)  # made where like is, not copied there
        return positive(GAIN * self.raw_scale, str(self.transform), self.minimum).expand_as(like)


class LogisticMixture(Headed):
    r"""Independent grey levels, each of a mixture of logistic laws rounded to ``levels`` equally spaced values on [0, 1].

    .. math:: P(y_j) = \sum_{i=1}^K \pi_{ij} \left[ \varsigma\left(\frac{y_j + h - \mu_{ij}}{s_{ij}}\right)
              - \varsigma\left(\frac{y_j - h - \mu_{ij}}{s_{ij}}\right) \right], \qquad h = \frac{1}{2(L - 1)}

    The first and the last level get what lies beyond them. Where the network says 0, the components have equal weights and stand
    evenly over [0, 1], wide enough to overlap: the inner levels start about equally likely, the two at the ends likelier (for the
    tails beyond them), and no two components start the same.

    Args:
        network: from the context to features.
        event: shape of one draw.
        levels: the number L of grey levels, at least 2.
        components: the number K of logistic laws for each element, at least 1; the head puts out 3K numbers for it.
        scale: how s is made positive, ``"softplus"`` or ``"exp"``.
        minimum: lower bound of s.

    Raises:
        ConfigError: fewer than 2 levels or 1 component; an unknown scale; a minimum that is not positive.

    Source: Salimans et al. (2017), without their dependence between the colours of a pixel.

    >>> from xhat.networks import MLP
    >>> p = LogisticMixture(MLP(20, [16]), event=(1, 4, 4), components=3)(torch.rand(5, 20))
    >>> p.log_prob(torch.full((5, 1, 4, 4), 128 / 255)).shape
    torch.Size([5])
    """

    remedy = REMEDY

    def __init__(
        self,
        network: nn.Module,
        event: int | Sequence[int],
        levels: int = 256,
        components: int = 5,
        scale: str = "exp",
        minimum: float = 1e-4,
    ) -> None:
        _check(levels, minimum)
        _check_transform(scale)
        whole_number("components, the number of logistics,", components)
        super().__init__(network, event, parameters=3 * components)
        self.levels, self.components, self.transform, self.minimum = levels, components, scale, minimum
        self.support = Grid(0.0, 1.0, levels)  # type: ignore[misc]

    def law(self, raw: Tensor) -> Distribution:
        logits, raw_loc, raw_scale = raw.movedim(-1 - self.event_ndim, -1).chunk(3, -1)
        start = (torch.arange(self.components, dtype=raw.dtype, device=raw.device) + 0.5) / self.components
        scale = positive(raw_scale + _raw(WIDTH / self.components, self.transform), self.transform, self.minimum)
        law = distributions.LogisticMixture(logits, start + raw_loc, scale, self.levels, validate_args=False)
        return Independent(law, self.event_ndim, validate_args=False)


class BetaBinomial(Headed):
    r"""Independent beta-binomial grey levels: each k / (L - 1), with k the heads of L - 1 coins of one Beta-distributed bias.

    .. math:: P\left(y_j = \tfrac{k}{n}\right) = \binom{n}{k} \frac{B(k + \alpha_j, n - k + \beta_j)}{B(\alpha_j, \beta_j)},
              \qquad n = L - 1

    Where the network says 0, α and β are 1 and all levels equally likely.

    Args:
        network: from the context to features.
        event: shape of one draw.
        levels: the number L of grey levels, at least 2.
        scale: how α and β are made positive, ``"softplus"`` or ``"exp"``.
        minimum: lower bound of both; the smaller it is, the closer to certain the first and the last level can be.
        largest: upper bound of both, which they approach smoothly. From some times L on the law is nearly binomial.

    Raises:
        ConfigError: fewer than 2 levels; an unknown scale; a minimum that is not positive, or a largest of at most 1.

    Source: Townsend, Bird & Barber (2019).

    >>> from xhat.networks import MLP
    >>> p = BetaBinomial(MLP(20, [400]), event=(1, 28, 28))(torch.rand(5, 20))
    >>> p.log_prob(torch.full((5, 1, 28, 28), 128 / 255)).shape
    torch.Size([5])
    """

    remedy = REMEDY

    def __init__(
        self,
        network: nn.Module,
        event: int | Sequence[int],
        levels: int = 256,
        scale: str = "softplus",
        minimum: float = 1e-5,
        largest: float = 1e4,
    ) -> None:
        _check(levels, minimum)
        _check_transform(scale)
        if not max(1.0, minimum) < largest < math.inf:
            raise ConfigError(f"largest must be above 1, above minimum, and finite, was {largest}")
        super().__init__(network, event, parameters=2)
        self.levels, self.transform, self.minimum, self.largest = levels, scale, minimum, largest
        self.support = Grid(0.0, 1.0, levels)  # type: ignore[misc]

    def law(self, raw: Tensor) -> Distribution:
        # The bound is approached and not cut off, so that no number is ever without a gradient.
        free = positive(raw + _raw(1.0, self.transform), self.transform, 0.0)
        alpha, beta = (self.minimum + free / (1 + free / self.largest)).unbind(-1 - self.event_ndim)
        law = distributions.BetaBinomial(alpha, beta, self.levels, validate_args=False)
        return Independent(law, self.event_ndim, validate_args=False)

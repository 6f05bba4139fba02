"""The beta-binomial law on grey levels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Gamma, constraints
from torch.types import _size

from xhat.distributions.grid import OnGrid


class BetaBinomial(OnGrid):
    r"""How many of n = L - 1 coins show heads whose common probability is Beta-distributed, as a grey level k / n of [0, 1].

    .. math:: P\left(x = \tfrac{k}{n}\right) = \binom{n}{k} \frac{B(k + \alpha, n - k + \beta)}{B(\alpha, \beta)}

    α = β = 1 is the uniform law on the levels; small parameters put the mass on the ends, large ones make it binomial, than which
    it is never narrower.

    The log mass is small beside the terms that it is the difference of, so it is made in float64, whatever the parameters' dtype,
    and comes back in theirs: true to 1e-6 nats for parameters up to 1e8, whose law is long the binomial one.

    Args:
        alpha: ``(*batch)``, above 0.
        beta: ``(*batch)``, above 0.
        levels: the number L of grey levels, at least 2.

    Raises:
        ConfigError: fewer than 2 levels.

    Source: as a likelihood of pixels, Townsend, Bird & Barber (Practical lossless compression with latent variables using bits
    back coding, 2019).

    >>> law = BetaBinomial(torch.tensor(1.0), torch.tensor(1.0), levels=5)
    >>> law.log_prob(law.values).exp()
    tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000])
    >>> BetaBinomial(torch.tensor(3.0), torch.tensor(1.0)).mean
    tensor(0.7500)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "alpha": constraints.positive,
        "beta": constraints.positive,
    }

    def __init__(self, alpha: Tensor, beta: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        self.alpha, self.beta = torch.broadcast_tensors(alpha, beta)
        super().__init__(self.alpha, levels, validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> BetaBinomial:
        shape = torch.Size(batch_shape)
        law = BetaBinomial(self.alpha.expand(shape), self.beta.expand(shape), self.levels, validate_args=False)
        law._validate_args = self._validate_args
        return law

    @property
    def mean(self) -> Tensor:
        return self.alpha / (self.alpha + self.beta)

    @property
    def variance(self) -> Tensor:
        total, n = self.alpha + self.beta, self.levels - 1
        return self.mean * (self.beta / total) * (total + n) / (total + 1) / n

    def _log_mass(self, index: Tensor) -> Tensor:
        n = self.levels - 1
        alpha, beta, k = self.alpha.double(), self.beta.double(), index.double()
        total = alpha + beta
        # In this order the two of a pair are near each other, and each difference is exact where they are nearly equal.
        log_mass = (
            self._log_choose(index.device)[index.long()]
            + (torch.lgamma(k + alpha) - torch.lgamma(alpha))
            + (torch.lgamma(n - k + beta) - torch.lgamma(beta))
            - (torch.lgamma(n + total) - torch.lgamma(total))
        )
        return log_mass.to(self.alpha.dtype)

    def _log_choose(self, device: torch.device) -> Tensor:
        """log of the binomial coefficient for each level, ``(L,)``."""
        k = torch.arange(self.levels, dtype=torch.float64, device=device)
        log_factorial = torch.lgamma(k + 1)
        return log_factorial[-1] - log_factorial - log_factorial.flip(0)

    def _draw(self, shape: torch.Size) -> Tensor:
        share = torch.sigmoid(_log_gamma(self.alpha.double().expand(shape)) - _log_gamma(self.beta.double().expand(shape)))
        return torch.binomial(torch.full_like(share, self.levels - 1), share)


def _log_gamma(shape: Tensor) -> Tensor:
    r"""The logarithm of Gamma(c, 1) draws, as :math:`\log g + \frac1c \log u` with g of Gamma(c + 1, 1) and u uniform on [0, 1].

    For small c most draws of Gamma(c, 1) itself are too small for a number. Two of them have a Beta-distributed share of their
    sum, which ``torch.distributions.Beta`` takes for a half where both are 0.
    """
    larger = Gamma(shape + 1, torch.ones_like(shape), validate_args=False).sample()
    return larger.log() - torch.empty_like(shape).exponential_() / shape

"""Priors of independent elements, which declare one law that all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import Poisson as TorchPoisson

from xhat import distributions
from xhat.distributions.standard_normal import standard_normal
from xhat.errors import ConfigError
from xhat.priors.base import Prior


class StandardNormal(Prior):
    r"""The standard Normal, :math:`N(0, I)`.

    >>> StandardNormal(20)().log_prob(torch.zeros(20))
    tensor(-18.3788)
    """

    def element(self) -> Distribution:
        return standard_normal(self.zeros, validate_args=False)


class Bernoulli(Prior):
    """Independent Bernoulli elements, the prior that goes with a Bernoulli posterior.

    Args:
        event: shape of one draw.
        probs: the probability of a 1, the same for all elements.
        learn: whether each element has a probability of its own, which starts at ``probs`` and is trained with the model.

    Raises:
        ConfigError: ``probs`` is not between 0 and 1.

    >>> Bernoulli(8)().log_prob(torch.ones(8)).exp().item() == 0.5**8
    True
    >>> [tuple(p.shape) for p in Bernoulli(8, learn=True).parameters()]
    [(8,)]
    """

    def __init__(self, event: int | Sequence[int], probs: float = 0.5, learn: bool = False) -> None:
        super().__init__(event)
        if not 0 < probs < 1:
            raise ConfigError(f"probs must be between 0 and 1, was {probs}")
        self.probs = probs
        start = torch.full(self.event, math.log(probs) - math.log1p(-probs))
        self.logits = nn.Parameter(start) if learn else None

    def element(self) -> Distribution:
        if self.logits is not None:
            return TorchBernoulli(logits=self.logits, validate_args=False)
        return TorchBernoulli(self.zeros + self.probs, validate_args=False)


class Categorical(Prior):
    """Independent elements, uniform over ``levels`` equally spaced values on [0, 1].

    >>> round(Categorical(2, levels=4)().log_prob(torch.tensor([0.0, 1 / 3])).exp().item(), 6)
    0.0625
    """

    def __init__(self, event: int | Sequence[int], levels: int = 256) -> None:
        super().__init__(event)
        self.levels = levels

    def element(self) -> Distribution:
        logits = self.zeros.unsqueeze(-1).expand(*self.event, self.levels)
        return distributions.Levels(logits, validate_args=False)


class OneHotCategorical(Prior):
    """Independent one-hot vectors, uniform over their categories, the prior that goes with a one-hot posterior.

    Args:
        event: ``(n, K)`` for n variables of K categories each, or ``(K,)`` for one variable.
        learn: whether the probabilities are trained with the model; they start uniform.

    Raises:
        ConfigError: fewer than 2 categories.

    >>> z = torch.eye(4)[:2]  # two variables of four categories
    >>> round(OneHotCategorical((2, 4))().log_prob(z).exp().item(), 6)
    0.0625
    """

    def __init__(self, event: int | Sequence[int], learn: bool = False) -> None:
        super().__init__(event)
        if self.event[-1] < 2:
            raise ConfigError(f"the last axis of a one-hot event must hold at least 2 categories, was {self.event}")
        self.logits = nn.Parameter(torch.zeros(self.event)) if learn else None

    def element(self) -> Distribution:
        return TorchOneHotCategorical(logits=self.zeros if self.logits is None else self.logits, validate_args=False)


class Poisson(Prior):
    """Independent Poisson elements with one rate, the prior that goes with a Poisson posterior.

    >>> round(Poisson(1, rate=2.0)().log_prob(torch.zeros(1)).item(), 6)
    -2.0
    """

    def __init__(self, event: int | Sequence[int], rate: float = 1.0) -> None:
        super().__init__(event)
        if not 0 < rate < math.inf:
            raise ConfigError(f"rate must be above 0 and finite, was {rate}")
        self.rate = rate

    def element(self) -> Distribution:
        return TorchPoisson(self.zeros + self.rate, validate_args=False)


class Uniform(Prior):
    """Uniform on [0, 1], both ends included, in each element: the prior that goes with a continuous Bernoulli posterior.

    In float32 such a posterior does draw 1 itself, where ``torch.distributions.Uniform`` has no density.

    >>> Uniform(3)().log_prob(torch.full((3,), 0.5))
    tensor(0.)
    """

    def element(self) -> Distribution:
        return distributions.ContinuousBernoulli(self.zeros, validate_args=False)

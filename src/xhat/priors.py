"""Priors p(z): conditionals without a context. Calling one gives the distribution."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent
from torch.distributions import Normal as TorchNormal
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import Poisson as TorchPoisson
from torch.distributions import Uniform as TorchUniform

from xhat import distributions
from xhat.conditionals import Chain as ConditionalChain
from xhat.conditionals import Conditional, event_of
from xhat.errors import ConfigError
from xhat.networks.base import as_shape
from xhat.parts import Part


class Prior(Part, nn.Module, abc.ABC):
    """A law over latents of shape ``event``; independent elements unless it says otherwise."""

    zeros: Tensor

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__()
        self.event = as_shape(event, "event")
        # A buffer, so that the law follows the model to its device and dtype.
        self.register_buffer("zeros", torch.zeros(self.event), persistent=False)

    @abc.abstractmethod
    def element(self) -> Distribution:
        """The law of one element; its batch shape, and after it its own event shape if it has one, make up ``event``."""

    def forward(self) -> Distribution:
        element = self.element()
        axes = len(element.batch_shape)
        return Independent(element, axes, validate_args=False) if axes else element


class StandardNormal(Prior):
    r"""The standard Normal, :math:`N(0, I)`.

    >>> StandardNormal(20)().log_prob(torch.zeros(20))
    tensor(-18.3788)
    """

    def element(self) -> Distribution:
        return TorchNormal(self.zeros, torch.ones_like(self.zeros), validate_args=False)


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
        if not rate > 0:
            raise ConfigError(f"rate must be above 0, was {rate}")
        self.rate = rate

    def element(self) -> Distribution:
        return TorchPoisson(self.zeros + self.rate, validate_args=False)


class Uniform(Prior):
    """Uniform on [0, 1] in each element, the prior that goes with a continuous Bernoulli posterior.

    >>> Uniform(3)().log_prob(torch.full((3,), 0.5))
    tensor(0.)
    """

    def element(self) -> Distribution:
        return TorchUniform(self.zeros, self.zeros + 1, validate_args=False)


class Chain(Part, nn.Module):
    r"""Two stochastic layers, drawn from the top down, :math:`p(z) = p(z_2)\, p(z_1 \mid z_2)`.

    It is a law of the vector (z₁, z₂), the same that the posterior ``conditionals.Chain`` is a law of, which draws z₁ first.

    Args:
        top: a prior of z₂; a chain again for more than two layers.
        below: a conditional from z₂ to z₁.

    Raises:
        ConfigError: a layer that declares no event, or a lower layer that does not take the upper's.

    >>> from xhat.conditionals import Bernoulli as Layer
    >>> from xhat.networks import MLP
    >>> p = Chain(Bernoulli(10), Layer(MLP(10, [200]), event=20))()
    >>> p.event_shape, p.sample((5,)).shape
    (torch.Size([30]), torch.Size([5, 30]))
    """

    def __init__(self, top: nn.Module, below: nn.Module) -> None:
        super().__init__()
        self.top, self.below = top, below
        above = event_of(top, "top layer")
        self.event_below = event_of(below, "lower layer")
        self.event = (math.prod(self.event_below) + math.prod(above),)
        if isinstance(below, Conditional | ConditionalChain):
            below.bind(above, "lower layer")

    def forward(self) -> Distribution:
        return distributions.Chain(self.top(), self.below, self.event_below, reverse=True, validate_args=False)

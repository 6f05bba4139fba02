"""Priors p(z): conditionals without a context. Calling one gives the distribution."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent
from torch.distributions import Normal as TorchNormal
from torch.distributions import Poisson as TorchPoisson
from torch.distributions import Uniform as TorchUniform

from xhat import distributions
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
        """The law of the elements, with batch shape ``event``."""

    def forward(self) -> Distribution:
        return Independent(self.element(), len(self.event), validate_args=False)


class StandardNormal(Prior):
    r"""The standard Normal, :math:`N(0, I)`.

    >>> StandardNormal(20)().log_prob(torch.zeros(20))
    tensor(-18.3788)
    """

    def element(self) -> Distribution:
        return TorchNormal(self.zeros, torch.ones_like(self.zeros), validate_args=False)


class Bernoulli(Prior):
    """Independent Bernoulli elements with one probability, the prior that goes with a Bernoulli posterior.

    >>> Bernoulli(8)().log_prob(torch.ones(8)).exp().item() == 0.5**8
    True
    """

    def __init__(self, event: int | Sequence[int], probs: float = 0.5) -> None:
        super().__init__(event)
        if not 0 < probs < 1:
            raise ConfigError(f"probs must be between 0 and 1, was {probs}")
        self.probs = probs

    def element(self) -> Distribution:
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

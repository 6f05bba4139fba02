"""Conditionals for binary, grey and counted data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent, constraints
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import Poisson as TorchPoisson

from xhat import distributions
from xhat.conditionals.base import Headed, check_minimum, positive
from xhat.distributions.grid import Grid
from xhat.errors import ConfigError


class Bernoulli(Headed):
    r"""Independent Bernoulli elements, :math:`\log p(y) = \sum_j y_j l_j - \mathrm{softplus}(l_j)` with logits l.

    Values between 0 and 1 are refused: there the cross-entropy is a number but no probability.

    Args:
        network: from the context to features.
        event: shape of one draw.

    >>> from xhat.networks import MLP
    >>> p = Bernoulli(MLP(20, [400]), event=(1, 28, 28))(torch.rand(6, 5, 20))
    >>> p.batch_shape, p.event_shape
    (torch.Size([6, 5]), torch.Size([1, 28, 28]))
    """

    support = constraints.boolean
    remedy = (
        "a Bernoulli law on grey values is not normalised, so binarise the data (binarize='dynamic' or 'static') or use "
        "likelihood='continuous-bernoulli'"
    )

    def __init__(self, network: nn.Module, event: int | Sequence[int]) -> None:
        super().__init__(network, event, parameters=1)

    def law(self, raw: Tensor) -> Distribution:
        logits = raw.squeeze(-1 - self.event_ndim)
        return Independent(TorchBernoulli(logits=logits, validate_args=False), self.event_ndim, validate_args=False)


class ContinuousBernoulli(Headed):
    r"""Independent continuous Bernoulli elements on [0, 1]: the Bernoulli's formula with the constant that makes it a density.

    Args:
        network: from the context to features.
        event: shape of one draw.

    Source: Loaiza-Ganem & Cunningham (2019).

    >>> from xhat.networks import MLP
    >>> p = ContinuousBernoulli(MLP(20, [400]), event=(1, 28, 28))(torch.rand(5, 20))
    >>> p.log_prob(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5])
    """

    support = constraints.unit_interval
    remedy = "scale the data to [0, 1] or use likelihood='normal'"

    def __init__(self, network: nn.Module, event: int | Sequence[int]) -> None:
        super().__init__(network, event, parameters=1)

    def law(self, raw: Tensor) -> Distribution:
        logits = raw.squeeze(-1 - self.event_ndim)
        law = distributions.ContinuousBernoulli(logits, validate_args=False)
        return Independent(law, self.event_ndim, validate_args=False)


class Categorical(Headed):
    """Independent grey levels: each element is one of ``levels`` equally spaced values on [0, 1], with a probability each.

    The elements keep the scale that pixels have everywhere else (k/255), so likelihoods can be swapped; being a mass function,
    its nats turn into honest bits per dimension.

    Args:
        network: from the context to features.
        event: shape of one draw.
        levels: number of grey levels, at least 2.

    >>> from xhat.networks import MLP
    >>> p = Categorical(MLP(20, [16]), event=(1, 4, 4))(torch.rand(5, 20))
    >>> p.log_prob(torch.full((5, 1, 4, 4), 128 / 255)).shape
    torch.Size([5])
    """

    remedy = "set levels to the data's own number of levels or use likelihood='normal'"

    def __init__(self, network: nn.Module, event: int | Sequence[int], levels: int = 256) -> None:
        if levels < 2:
            raise ConfigError(f"levels must be at least 2, was {levels}")
        super().__init__(network, event, parameters=levels)
        self.levels = levels
        self.support = Grid(0.0, 1.0, levels)  # type: ignore[misc]

    def law(self, raw: Tensor) -> Distribution:
        logits = raw.movedim(-1 - self.event_ndim, -1)
        return Independent(distributions.Levels(logits, validate_args=False), self.event_ndim, validate_args=False)


class OneHotCategorical(Headed):
    r"""Independent one-hot vectors: a 1 in the place of the category and otherwise 0.

    .. math:: \log p(y) = \sum_{i,k} y_{ik} \log \pi_{ik}

    The event's last axis is that of the categories; the others count the variables. The mean is the probabilities.

    Args:
        network: from the context to features.
        event: ``(n, K)`` for n variables of K categories each, or ``(K,)`` for one variable.

    Raises:
        ConfigError: fewer than 2 categories.

    >>> from xhat.networks import MLP
    >>> q = OneHotCategorical(MLP(784, [200]), event=(20, 10))(torch.rand(5, 784))
    >>> q.batch_shape, q.event_shape, q.sample().sum(-1).unique()
    (torch.Size([5]), torch.Size([20, 10]), tensor([1.]))
    """

    support = constraints.one_hot
    remedy = "one-hot encode the data along their last axis, or use likelihood='categorical' for grey levels"

    def __init__(self, network: nn.Module, event: int | Sequence[int]) -> None:
        super().__init__(network, event, parameters=1)
        if self.event[-1] < 2:
            raise ConfigError(f"the last axis of a one-hot event must hold at least 2 categories, was {self.event}")

    def law(self, raw: Tensor) -> Distribution:
        law = TorchOneHotCategorical(logits=raw.squeeze(-1 - self.event_ndim), validate_args=False)
        axes = self.event_ndim - 1
        return Independent(law, axes, validate_args=False) if axes else law


class Poisson(Headed):
    """Independent Poisson counts with rate ``minimum + softplus(·)`` (or exp), times the exposure where there is one.

    Args:
        network: from the context to features.
        event: shape of one draw.
        scale: ``"softplus"`` or ``"exp"``: how the rate is made positive.
        minimum: lower bound of the rate.

    >>> from xhat.networks import MLP
    >>> Poisson(MLP(3, [8]), event=(4,))(torch.rand(5, 3)).mean.shape
    torch.Size([5, 4])
    """

    support = constraints.nonnegative_integer
    remedy = "Poisson is a law of counts, so use likelihood='normal' for real values"

    def __init__(self, network: nn.Module, event: int | Sequence[int], scale: str = "softplus", minimum: float = 1e-6) -> None:
        check_minimum(minimum)
        super().__init__(network, event, parameters=1)
        positive(torch.zeros(()), scale, minimum)  # refuses an unknown transform here rather than at the first batch
        self.transform, self.minimum = scale, minimum

    def law(self, raw: Tensor) -> Distribution:
        return self._of(self._rate(raw))

    def exposed(self, raw: Tensor, exposure: Tensor) -> Distribution:
        return self._of(self._rate(raw) * exposure.reshape(*exposure.shape, *(1,) * self.event_ndim))

    def _rate(self, raw: Tensor) -> Tensor:
        return positive(raw.squeeze(-1 - self.event_ndim), self.transform, self.minimum)

    def _of(self, rate: Tensor) -> Distribution:
        return Independent(TorchPoisson(rate, validate_args=False), self.event_ndim, validate_args=False)

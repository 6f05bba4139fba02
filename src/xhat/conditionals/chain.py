"""A conditional of several stochastic layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat import distributions
from xhat.conditionals.base import Conditional, event_of
from xhat.parts import Part


class Chain(Part, nn.Module):
    r"""Two stochastic layers, :math:`q(z \mid x) = q(z_1 \mid x)\, q(z_2 \mid z_1)`, as one law of the vector (z₁, z₂).

    Args:
        first: a conditional from x to z₁.
        then: a conditional from z₁ to z₂; a chain again for more than two layers.

    Raises:
        ConfigError: a layer that declares no event, or a second layer that does not take the first's.

    >>> import torch
    >>> from xhat.conditionals import Bernoulli
    >>> from xhat.networks import MLP
    >>> q = Chain(Bernoulli(MLP(784, [200]), event=20), Bernoulli(MLP(20, [200]), event=10))(torch.rand(5, 784))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([30]))
    """

    def __init__(self, first: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.first, self.then = first, then
        below = event_of(first, "first layer")
        self.event_then = event_of(then, "second layer")
        self.event = (math.prod(below) + math.prod(self.event_then),)
        if isinstance(then, Conditional | Chain):
            then.bind(below, "second layer")

    def bind(self, context_shape: Sequence[int], what: str) -> None:
        """Tell the first layer the shape of x; a model does this when it is put together.

        Raises:
            ConfigError: the first layer's network takes another number of values.
        """
        if isinstance(self.first, Conditional | Chain):
            self.first.bind(context_shape, f"{what}, first layer")

    def forward(self, context: Tensor) -> Distribution:
        return distributions.Chain(self.first(context), self.then, self.event_then, validate_args=False)

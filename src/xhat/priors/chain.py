"""The chain prior: several stochastic layers."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat import distributions
from xhat.conditionals import Conditional, event_of
from xhat.conditionals.chain import given
from xhat.parts import Part
from xhat.priors.base import law_of


class Chain(Part, nn.Module):
    r"""Two stochastic layers, drawn from the top down, :math:`p(z) = p(z_2)\, p(z_1 \mid z_2)`.

    It is a law of the vector (z₁, z₂), the same that the posterior ``conditionals.Chain`` is a law of, which draws z₁ first.

    Args:
        top: a prior of z₂; a chain again for more than two layers.
        below: a conditional from z₂ to z₁.

    Where a layer depends on a condition, so does the prior: call it with one, ``(B, C)``.

    Raises:
        ConfigError: a layer that declares no event, or a lower layer that does not take the upper's.

    >>> import torch
    >>> from xhat.conditionals import Bernoulli as Layer
    >>> from xhat.networks import MLP
    >>> from xhat.priors import Bernoulli
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
        if isinstance(below, Conditional):
            below.bind(above, "lower layer")

    def forward(self, condition: Tensor | None = None) -> Distribution:
        below = given(self.below, condition)
        return distributions.Chain(law_of(self.top, condition), below, self.event_below, reverse=True, validate_args=False)

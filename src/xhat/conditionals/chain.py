"""A conditional of several stochastic layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat import distributions
from xhat.conditionals.base import Conditional, condition_of, event_of


class Chain(Conditional):
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
        if isinstance(then, Conditional):
            then.bind(below, "second layer")

    def bind(self, context_shape: Sequence[int], what: str) -> None:
        if isinstance(self.first, Conditional):
            self.first.bind(context_shape, f"{what}, first layer")

    def forward(
        self,
        context: Tensor,
        condition: Tensor | None = None,
        exposure: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Distribution:
        first = called(self.first, context, condition=condition, exposure=exposure, observed=observed)
        return distributions.Chain(first, given(self.then, condition), self.event_then, validate_args=False)


def called(conditional: nn.Module, context: Tensor, **known: Tensor | None) -> Distribution:
    """A conditional's law, told only what is known: one of a user's own may take a context alone."""
    law: Distribution = conditional(context, **{name: value for name, value in known.items() if value is not None})
    return law


def given(conditional: nn.Module, condition: Tensor | None) -> Callable[[Tensor], Distribution]:
    """A conditional as a function of its context alone, under a condition if it takes one."""
    if condition is None or not condition_of(conditional):
        return conditional
    return functools.partial(conditional, condition=condition)

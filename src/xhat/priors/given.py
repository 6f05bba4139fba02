"""A prior that depends on the condition: any conditional whose context it is."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.distributions import Distribution

from xhat.conditionals import event_of
from xhat.errors import ConfigError
from xhat.networks import in_shape_of
from xhat.parts import Part
from xhat.priors.base import need_condition


class Given(Part, nn.Module):
    """The prior p(z|c) that a conditional makes of the condition.

    Args:
        conditional: from the condition, ``(B, C)``, to the law of z; its network says how many numbers it takes.

    Raises:
        ConfigError: a network that does not say so; a call without a condition, or with one of another size.

    >>> import torch
    >>> from xhat.conditionals import Normal
    >>> from xhat.networks import MLP
    >>> prior = Given(Normal(MLP(10, [50]), event=20))
    >>> prior(torch.eye(10)[:3]).batch_shape
    torch.Size([3])
    """

    def __init__(self, conditional: nn.Module) -> None:
        super().__init__()
        self.event = event_of(conditional, "prior")
        shape = in_shape_of(getattr(conditional, "network", conditional))
        if shape is None:
            raise ConfigError(
                f"{type(conditional).__name__} does not say how many numbers of a condition it takes: give its network an "
                "attribute in_shape"
            )
        self.condition = math.prod(shape)
        self.conditional = conditional

    def forward(self, condition: Tensor | None = None) -> Distribution:
        law: Distribution = self.conditional(need_condition(condition, self.condition, "the prior Given"))
        return law

"""A network that looks at the first part of its input only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from xhat.errors import ConfigError
from xhat.networks.base import Network, as_shape, beside, condition_size, head_of, in_shape_of


class Take(Network):
    r"""Passes the first numbers of its input on to another network, and leaves the rest out.

    A likelihood of a model with two stochastic layers gets both of them, (z₁, z₂), but :math:`p(x \mid z_1)` depends on the
    first alone.

    Args:
        network: what gets the first numbers, as many as it takes and in the shape that it takes.
        in_shape: shape of the whole input; it is flattened.

    Raises:
        ConfigError: the network does not say what it takes, or takes more than there is.

    >>> import torch
    >>> from xhat.networks import MLP
    >>> Take(MLP(20, [400]), in_shape=30)(torch.zeros(5, 30)).shape
    torch.Size([5, 400])
    """

    def __init__(self, network: nn.Module, in_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        taken = in_shape_of(network)
        if taken is None:
            raise ConfigError(f"{type(network).__name__} does not say what it takes: give it an attribute in_shape")
        if math.prod(taken) > math.prod(self.in_shape):
            raise ConfigError(
                f"the network takes {math.prod(taken)} numbers, but the input of shape {self.in_shape} has only "
                f"{math.prod(self.in_shape)}: make in_shape the shape of the whole input"
            )
        self.network, self.taken = network, taken
        self.condition = condition_size(network)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        first = x.flatten(1)[:, : math.prod(self.taken)]
        features: Tensor = self.network(first.reshape(-1, *self.taken), **beside(self.network, condition, None))
        return features

    def head(self, shape: tuple[int, ...]) -> nn.Module:
        return head_of(self.network, shape)

"""Baselines that have a state: the average of what came before, and a network of the context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xhat.errors import ConfigError
from xhat.networks import head_of
from xhat.parts import Part


class Lagged(Part, nn.Module):
    """The running average of the values of earlier calls; 0 before the first.

    Args:
        decay: in [0, 1); an old value counts ``decay`` times as much with each call.

    >>> baseline = Lagged(decay=0.5)
    >>> for value in (1.0, 4.0):
    ...     baseline.join(torch.tensor([value]))
    >>> baseline()
    tensor(3.)
    """

    average: Tensor
    seen: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must be in [0, 1), was {decay}")
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self) -> Tensor:
        # Dividing by 1 − decay^n makes it a weighted mean from the first value on.
        return self.average / (1 - self.decay**self.seen).clamp(min=1e-12)

    @torch.no_grad()
    def join(self, values: Tensor) -> None:
        """Let these values count for the calls to come."""
        if self.training:
            self.average.mul_(self.decay).add_((1 - self.decay) * values.mean().to(self.average.dtype))
            self.seen.add_(1)


class ContextBaseline(Part, nn.Module):
    r"""A baseline that a network learns from the context, :math:`b(c) = \bar f + N(c)`, after Mnih & Gregor (2014).

    :math:`\bar f` is the running average, N a network trained on the squared error to the values. Being made of the context
    alone, it depends on no draw, and any score-function gradient stays unbiased with it.

    Args:
        network: from the context to features; a linear layer to one number is added.
        decay: of the running average.

    Shapes: a context ``(*batch, *in_shape)`` gives ``(*batch)``.

    >>> from xhat.networks import MLP
    >>> baseline = ContextBaseline(MLP(4, [8]))
    >>> baseline(torch.zeros(5, 4)).shape, baseline.loss(torch.zeros(5, 4), torch.ones(5)).shape
    (torch.Size([5]), torch.Size([]))
    """

    def __init__(self, network: nn.Module, decay: float = 0.9) -> None:
        super().__init__()
        self.network = network
        self.head = head_of(network, (1,))
        self.lagged = Lagged(decay)

    def _learned(self, context: Tensor) -> Tensor:
        shape = getattr(self.network, "in_shape", context.shape[1:])
        batch = context.shape[: context.ndim - len(shape)] if tuple(context.shape[-len(shape) :]) == tuple(shape) else None
        if batch is None:  # the network flattens what it gets
            batch = context.shape[:1]
        return self.head(self.network(context.detach().reshape(batch.numel(), *shape))).reshape(batch)

    def forward(self, context: Tensor) -> Tensor:
        with torch.no_grad():
            return self.lagged() + self._learned(context)

    def loss(self, context: Tensor, values: Tensor) -> Tensor:
        """The mean squared error to values ``(*batch)`` or ``(S, *batch)``, differentiable in the network only."""
        return (values.detach() - self.lagged() - self._learned(context)).square().mean()

    def join(self, values: Tensor) -> None:
        """Let these values count in the running average."""
        self.lagged.join(values)

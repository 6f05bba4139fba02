"""What every prior of one shape shares."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

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

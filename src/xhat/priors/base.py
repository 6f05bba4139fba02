"""What every prior of one shape shares."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from xhat.conditionals import condition_of
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


def law_of(prior: nn.Module, condition: Tensor | None) -> Distribution:
    """A prior's law: p(z), or p(z|c) of batch shape ``(B,)`` where it depends on the condition, ``(B, C)``.

    Raises:
        ConfigError: it depends on a condition, and there is none.
    """
    law: Distribution = prior() if condition is None or not condition_of(prior) else prior(condition)
    return law


def need_condition(condition: Tensor | None, size: int, what: str) -> Tensor:
    """The condition that a prior cannot do without.

    Raises:
        ConfigError: there is none, or one of another size.
    """
    if condition is None or condition.shape[-1] != size:
        was = "none was given" if condition is None else f"it had {condition.shape[-1]}"
        raise ConfigError(f"{what} depends on a condition of {size} numbers, but {was}: give condition=…")
    return condition

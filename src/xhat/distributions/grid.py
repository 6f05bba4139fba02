"""Laws on the grey levels of a picture: the grid itself, and what all laws on it share."""

from __future__ import annotations

import abc

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from xhat.errors import ConfigError, DataError


class Grid(constraints.Constraint):
    """``count`` equally spaced values from ``low`` to ``high``.

    >>> Grid(0.0, 1.0, 5)
    5 equally spaced levels from 0 to 1
    >>> Grid(0.0, 1.0, 5).check(torch.tensor([0.0, 0.3, 0.75, 1.25]))
    tensor([ True, False,  True, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, low: float, high: float, count: int) -> None:
        self.low, self.high, self.count = low, high, count
        super().__init__()

    def __repr__(self) -> str:
        return f"{self.count} equally spaced levels from {self.low:g} to {self.high:g}"

    def position(self, value: Tensor) -> Tensor:
        """Where ``value`` lies on the axis of levels: 0 at ``low``, ``count - 1`` at ``high``."""
        return (value - self.low) * ((self.count - 1) / (self.high - self.low))

    def check(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        position = self.position(value)
        nearest = position.round()
        # With many levels the rounding of the value itself can exceed a thousandth of a step.
        tolerance = max(1e-3, 4 * self.count * torch.finfo(value.dtype).eps)
        return ((position - nearest).abs() <= tolerance) & (nearest >= 0) & (nearest < self.count)


class OnGrid(Distribution, abc.ABC):
    r"""Abstract: a law of grey levels :math:`x = k / (L - 1)`, k = 0 … L - 1, with fewer parameters than levels.

    Its ``log_prob`` is a log mass, so that nats turn into bits per dimension as they are.

    Args:
        like: a parameter, broadcast to ``(*batch)``, whose dtype and device the levels take.
        levels: the number L of grey levels, at least 2.

    Raises:
        ConfigError: fewer than 2 levels.
    """

    has_enumerate_support = True

    def __init__(self, like: Tensor, levels: int, validate_args: bool | None) -> None:
        if levels < 2:
            raise ConfigError(f"{type(self).__name__}: levels must be at least 2, was {levels}")
        self.levels = levels
        self._like = like
        super().__init__(like.shape, torch.Size(), validate_args=validate_args)

    @property
    def values(self) -> Tensor:
        """The levels themselves, ``(L,)``."""
        return torch.linspace(0.0, 1.0, self.levels, dtype=self._like.dtype, device=self._like.device)

    @property
    def support(self) -> Grid:
        return Grid(0.0, 1.0, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats of values on the grid; broadcasts ``value`` against ``(*batch)``.

        Raises:
            DataError: with arguments validated, a value lies off the grid by more than a thousandth of a step.
        """
        if not value.is_floating_point():
            value = value.to(self._like.dtype)
        if self._validate_args and not bool(self.support.check(value).all()):
            raise DataError(
                f"{type(self).__name__}.log_prob: every value must be one of {self.support}, but the values range from "
                f"{value.min():g} to {value.max():g} and some lie off it: quantise the data to it first"
            )
        return self._log_mass((value * (self.levels - 1)).round())

    @abc.abstractmethod
    def _log_mass(self, index: Tensor) -> Tensor:
        """Log mass of the levels with these indices, 0 … L - 1 as floating-point numbers."""

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            index = self._draw(self._extended_shape(sample_shape))
            index = index.clamp(0, self.levels - 1).abs()  # a rounded negative number is -0, which prints as no level
            return index.to(self._like.dtype) / (self.levels - 1)

    @abc.abstractmethod
    def _draw(self, shape: torch.Size) -> Tensor:
        """Indices of drawn levels, ``shape``; what lies beyond the ends counts as the end."""

    def entropy(self) -> Tensor:
        """Entropy in nats, ``(*batch)``: a sum over all levels, so it holds L numbers for each element."""
        log_p = self.log_prob(self.enumerate_support())
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels, ``(L, *batch)``, or ``(L, 1, .., 1)`` with ``expand=False``."""
        values = self.values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values

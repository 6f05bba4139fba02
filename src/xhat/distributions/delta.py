"""The law of something that is not random."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from xhat.errors import ConfigError


class _Point(constraints.Constraint):
    """The one value that the law can take."""

    is_discrete = True

    def __init__(self, value: Tensor, event_dim: int) -> None:
        self.value = value
        self._event_dim = event_dim
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return self._event_dim

    def check(self, value: Tensor) -> Tensor:
        same = value == self.value
        return same.flatten(-self._event_dim).all(-1) if self._event_dim else same


class Delta(Distribution):
    r"""A point mass: the whole probability sits on ``value``.

    .. math:: P(x) = 1 \text{ if } x = v \text{ else } 0

    ``log_prob`` is the logarithm of a *mass*, 0 on the point and -inf elsewhere, not of a density: the two must not be
    subtracted from one another, and :func:`xhat.kl_divergence` refuses to. ``rsample`` returns ``value`` itself, so a
    gradient flows through a draw as through a deterministic layer; that is how a plain autoencoder is a model with a
    posterior.

    Args:
        value: the point, ``(*batch, *event)``.
        event_dim: how many of the last axes of ``value`` make one event.

    Raises:
        ConfigError: ``event_dim`` is negative or larger than the number of axes of ``value``.

    >>> law = Delta(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), event_dim=1)
    >>> law.log_prob(torch.tensor([0.0, 1.0]))
    tensor([0., -inf])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, value: Tensor, event_dim: int = 0, validate_args: bool | None = None) -> None:
        if not 0 <= event_dim <= value.dim():
            raise ConfigError(
                f"Delta: event_dim must be from 0 to the number of axes of value, {value.dim()} for shape "
                f"{tuple(value.shape)}, but was {event_dim}"
            )
        self.value = value
        self.event_dim = event_dim
        cut = value.dim() - event_dim
        super().__init__(value.shape[:cut], value.shape[cut:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Delta:
        return Delta(self.value.expand(torch.Size(batch_shape) + self.event_shape), self.event_dim, self._validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return _Point(self.value, self.event_dim)

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def mode(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        # torch's own runs rsample without grad, but expanding to the same shape hands back the very tensor.
        return self.rsample(sample_shape).detach()

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self.value.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats: 0 where the whole event equals the point, -inf elsewhere; ``(*samples, *batch)``."""
        same = self.support.check(value)
        return self._zeros(same.shape).masked_fill(~same, -torch.inf)

    def entropy(self) -> Tensor:
        """0 nats, ``(*batch)``: nothing is uncertain."""
        return self._zeros(self.batch_shape)

    def _zeros(self, shape: torch.Size) -> Tensor:
        dtype = self.value.dtype if self.value.is_floating_point() else torch.get_default_dtype()
        return torch.zeros(shape, dtype=dtype, device=self.value.device)

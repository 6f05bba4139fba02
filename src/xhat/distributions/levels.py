"""A law over the grey levels of a picture."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from xhat.distributions.grid import Grid
from xhat.distributions.shapes import broadcast
from xhat.errors import ConfigError, DataError


class Levels(Distribution):
    r"""A categorical law whose categories are grey levels: L equally spaced values from ``low`` to ``high``.

    .. math:: P(x = v_i) = \frac{e^{\ell_i}}{\sum_j e^{\ell_j}}, \qquad
              v_i = \text{low} + i\,\frac{\text{high} - \text{low}}{L - 1}

    The 256-way softmax over pixels of van den Oord et al. (Pixel recurrent neural networks, 2016), as a law on the
    pixel values themselves, so that its mean is a picture.

    Args:
        logits: unnormalised log probabilities, ``(*batch, L)``: the last axis is that of the levels.
        low: the first level.
        high: the last level.

    Raises:
        ConfigError: fewer than 2 levels, or ``high`` not above ``low``.

    >>> law = Levels(torch.zeros(3, 5))
    >>> law.batch_shape, law.mean
    (torch.Size([3]), tensor([0.5000, 0.5000, 0.5000]))
    >>> law.log_prob(torch.tensor([0.0, 0.25, 1.0]))
    tensor([-1.6094, -1.6094, -1.6094])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, low: float = 0.0, high: float = 1.0, validate_args: bool | None = None) -> None:
        if logits.dim() < 1 or logits.shape[-1] < 2:
            raise ConfigError(
                f"Levels: the last axis of logits must hold at least 2 levels, but the shape was {tuple(logits.shape)}"
            )
        if not low < high:
            raise ConfigError(f"Levels: high must be above low, but low was {low} and high was {high}")
        self.logits = logits
        self.low, self.high = float(low), float(high)
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Levels:
        logits = self.logits.expand((*batch_shape, self.count))
        law = Levels(logits, self.low, self.high, validate_args=False)
        law._validate_args = self._validate_args
        return law

    @property
    def count(self) -> int:
        """The number of levels, L."""
        return self.logits.shape[-1]

    @property
    def values(self) -> Tensor:
        """The levels themselves, ``(L,)``."""
        return torch.linspace(self.low, self.high, self.count, dtype=self.logits.dtype, device=self.logits.device)

    @property
    def support(self) -> Grid:
        return Grid(self.low, self.high, self.count)

    @property
    def probs(self) -> Tensor:
        """Probability of each level, ``(*batch, L)``."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        return self.probs @ self.values

    @property
    def variance(self) -> Tensor:
        # Centred before it is squared: the difference of two moments would lose the small variances.
        return (self.probs * (self.values - self.mean.unsqueeze(-1)).square()).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.values[self.logits.argmax(-1)]

    def sample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            flat = self.probs.reshape(-1, self.count)
            index = torch.multinomial(flat, torch.Size(sample_shape).numel(), replacement=True)
            return self.values[index.T.reshape(shape)]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats of values on the grid; broadcasts ``value`` against ``(*batch)``.

        Raises:
            DataError: with arguments validated, a value lies off the grid by more than a thousandth of a step.
        """
        if not value.is_floating_point():
            value = value.to(self.logits.dtype)
        grid = self.support
        if self._validate_args and not bool(grid.check(value).all()):
            raise DataError(
                f"Levels.log_prob: every value must be one of {self.count} equally spaced levels from {self.low} to "
                f"{self.high}, but the values range from {value.min():g} to {value.max():g} and some lie off it: "
                "quantise the data to it first"
            )
        index = grid.position(value).round().long().clamp(0, self.count - 1)
        # The chosen logit minus the logsumexp: a normalised copy of all the logits is never made.
        return self._choose(index) - self.logits.logsumexp(-1)

    def _choose(self, index: Tensor) -> Tensor:
        extra = index.dim() - len(self.batch_shape)
        if extra <= 0:
            batch = broadcast(index.shape, self.batch_shape)
            index = index.expand(batch).unsqueeze(-1)
            return self.logits.expand((*batch, self.count)).gather(-1, index).squeeze(-1)
        # Leading sample axes of the value go beside the levels, or the gradient would be as large as samples x logits.
        batch = broadcast(index.shape[extra:], self.batch_shape)
        lead = index.shape[:extra]
        index = index.expand(lead + batch).reshape((-1, *batch)).movedim(0, -1)
        chosen = self.logits.expand((*batch, self.count)).gather(-1, index)
        return chosen.movedim(-1, 0).reshape(lead + batch)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``(*batch)``."""
        log_p = self.logits.log_softmax(-1)
        # A level of probability 0 has log_p = -inf; clamped, its 0 log 0 is the 0 that it should be.
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels, ``(L, *batch)``, or ``(L, 1, .., 1)`` with ``expand=False``."""
        values = self.values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values

"""Mean and variance of what arrives in pieces, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xhat.ranks import Ranks


class Moments:
    r"""Count, mean, variance and smallest value over examples, of each number of an event.

    Pieces are joined as Chan, Golub & LeVeque (1979) do, which loses no digits to a mean that is large beside the spread:

    .. math:: M = M_a + M_b + \delta^2 \frac{n_a n_b}{n_a + n_b}, \qquad \delta = \bar x_b - \bar x_a

    with M the sum of squared deviations from the mean.

    >>> moments = Moments()
    >>> moments.add(torch.tensor([1.0, 2.0]))
    >>> moments.add(torch.tensor([6.0]))
    >>> moments.count, float(moments.mean), float(moments.variance)
    (3, 3.0, 7.0)
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self._sum = torch.zeros((), dtype=torch.float64)
        self._lowest = torch.tensor(math.inf, dtype=torch.float64)
        self._deviations = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take in the values of some more examples, ``(n, *event)``; none of them leaves all as it was."""
        count = len(values)
        if count == 0:
            return
        values = values.detach().cpu().double()
        self._join(values.sum(0), (values - values.mean(0)).square().sum(0), count, values.min())

    def _join(self, values: Tensor, deviations: Tensor, count: int, lowest: Tensor) -> None:
        delta, total = values / count - self.mean, self.count + count
        self._deviations = self._deviations + deviations + delta.square() * (self.count * count / total)
        self._sum = self._sum + values  # a sum, and not steps of the mean, which an infinite value would turn into NaN
        self.count = total
        self._lowest = torch.minimum(self._lowest, lowest)

    def together(self, ranks: Ranks) -> None:
        """Take in what the other processes have seen, in the same order in all of them."""
        ends = torch.stack([self._sum.new_tensor(self.count), self._lowest])
        held = torch.cat([self._sum.flatten(), self._deviations.flatten(), ends])
        parts, shape = ranks.gathered(held), self._sum.shape
        self._clear()
        for part in parts:
            total, deviations, (count, lowest) = part[: shape.numel()], part[shape.numel() : -2], part[-2:]
            if count > 0:
                self._join(total.view(shape), deviations.view(shape), int(count), lowest)

    @property
    def mean(self) -> Tensor:
        """The mean over examples, float64 of the event's shape."""
        return self._sum / max(self.count, 1)

    @property
    def lowest(self) -> float:
        """The smallest value."""
        return float(self._lowest)

    @property
    def variance(self) -> Tensor:
        """The unbiased variance over examples, float64 of the event's shape; NaN of one example."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return self._deviations / (self.count - 1)

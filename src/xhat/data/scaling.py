"""Standardisation: every column at mean 0 and standard deviation 1, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xhat.errors import DataError

_SHOWN = 8  # columns named in one message


class Scaling(NamedTuple):
    r"""The affine map between the units of the data and standardised ones, ``(x - mean) / std``.

    Both tensors are float64 and have the event's shape.

    >>> scaling = Scaling(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))
    >>> scaling.apply(torch.tensor([[2.0, 2.0]])), scaling.invert(torch.tensor([[2.0, 0.0]]))
    (tensor([[2., 0.]]), tensor([[2., 2.]]))
    >>> round(scaling.log_jacobian, 4)
    -0.6931
    """

    mean: Tensor
    std: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """``x`` ``(..., *event)`` in standardised units, dtype and device kept."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def invert(self, x: Tensor) -> Tensor:
        """``x`` ``(..., *event)`` back in the units of the data, dtype and device kept."""
        return x * self.std.to(x) + self.mean.to(x)

    @property
    def log_jacobian(self) -> float:
        r"""The nats to add to a log density in standardised units to have it in the units of the data.

        .. math:: \log p(x) = \log p\left(\frac{x - \mu}{\sigma}\right) - \sum_i \log \sigma_i
        """
        return -float(self.std.double().log().sum())


def scaling_of(storage: Tensor, names: Sequence[str] | None = None, observed: Tensor | None = None) -> Scaling:
    """Mean and standard deviation of the training ``storage`` ``(N, *event)``: of every column of a table, and of
    every channel of an image, whose single pixels may well be constant. Of what is there, where ``observed`` says so.

    Raises:
        DataError: a column, or a channel, is constant.
    """
    table = storage.dim() == 2
    if table:
        refuse_constant(storage, names)
    axes = [axis for axis in range(storage.dim()) if axis != 1]
    values = storage.double()
    if observed is None:
        std, mean = torch.std_mean(values, dim=axes, keepdim=True, correction=0)
    else:
        count = observed.sum(axes, keepdim=True)
        mean = values.where(observed, 0.0).sum(axes, keepdim=True) / count
        std = ((values - mean).where(observed, 0.0).square().sum(axes, keepdim=True) / count).sqrt()
    if not bool((std > 0).all()):
        raise DataError("a channel of the images has one value throughout and cannot be standardised: leave it out")
    event = storage.shape[1:]
    return Scaling(mean[0].expand(event).clone(), std[0].expand(event).clone())


def constant_columns(storage: Tensor) -> list[int]:
    """The columns of a table ``(N, D)`` that have one value throughout."""
    low, high = torch.aminmax(storage, dim=0)
    return [int(column) for column in (low == high).nonzero().flatten()]


def refuse_constant(storage: Tensor, names: Sequence[str] | None = None) -> None:
    """Refuse a table in which a column is constant: a density on it has no scale, and no bound from above.

    Raises:
        DataError: names the columns.
    """
    constant = constant_columns(storage)
    if constant:
        raise DataError(
            f"{column_list(constant, names)} the same value in all {len(storage)} training examples and must vary: "
            "drop_constant=True (--drop-constant) leaves such columns out"
        )


def column_list(columns: Sequence[int], names: Sequence[str] | None = None) -> str:
    """``column 'age' has``, ``columns 3, 7 have``: the subject of a sentence, with positions from 0 if unnamed."""
    shown = [str(column) if names is None else repr(names[column]) for column in columns[:_SHOWN]]
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return f"column{'s' * (len(columns) > 1)} {', '.join(shown)}{more} {'have' if len(columns) > 1 else 'has'}"

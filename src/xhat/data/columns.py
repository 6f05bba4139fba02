"""What is known of each column of a table, or of each channel of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xhat.data.scaling import Scaling

_CHUNK = 4096  # examples looked at together


@dataclass(frozen=True)
class Column:
    """One column of a table, or one channel of pictures: an entry of the event's first axis.

    Attributes:
        name: None where the source has none.
        whole: whether the training values are whole numbers.
        low: the least training value, in the units of the source; None where it is not known.
        high: the greatest.
        mean: what is subtracted; None where nothing is standardised.
        std: what is then divided by.
    """

    name: str | None = None
    whole: bool = False
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None


def columns_of(rows: Tensor, names: Sequence[str] | None = None) -> tuple[Column, ...]:
    """The columns, or channels, of training rows ``(N, C, ...)`` as they are stored.

    >>> columns_of(torch.tensor([[1.0, 0.5], [3.0, 0.25]]), ["count", "share"])[0]
    Column(name='count', whole=True, low=1.0, high=3.0, mean=None, std=None)
    """
    low, high, whole = ranges(rows)
    found = zip([None] * rows.shape[1] if names is None else names, whole, low, high, strict=True)
    return tuple(Column(*each) for each in found)


def standardised(columns: Sequence[Column], scaling: Scaling) -> tuple[Column, ...]:
    """The same columns with the mean and the deviation by which each is standardised."""
    mean, std = (part.reshape(len(columns), -1)[:, 0].tolist() for part in scaling)
    return tuple(replace(column, mean=m, std=s) for column, m, s in zip(columns, mean, std, strict=True))


def ranges(rows: Tensor) -> tuple[list[float], list[float], list[bool]]:
    """The least and the greatest value of each column or channel, and whether all are whole numbers."""
    low, high = (bound.reshape(rows.shape[1], -1) for bound in torch.aminmax(rows, dim=0))
    whole = torch.ones(rows.shape[1], dtype=torch.bool)
    for chunk in rows.split(_CHUNK) if rows.is_floating_point() else ():
        if not bool(whole.any()):
            break
        whole &= (chunk == chunk.round()).all(0).reshape(rows.shape[1], -1).all(1)
    return low.amin(1).double().tolist(), high.amax(1).double().tolist(), whole.tolist()

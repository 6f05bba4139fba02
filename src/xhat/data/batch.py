"""What travels from the feed to the last estimator: some examples, and what is known beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Some examples, with what they are conditioned on and which of their values were seen. None costs nothing.

    Attributes:
        x: ``(B, *event)``, 0 where nothing was observed.
        observed: ``(B, *event)`` bool, which values were seen; None: all of them.
        condition: ``(B, C)``, what everything is conditioned on: one-hot classes and covariates; None: nothing.
        exposure: ``(B,)``, positive, what multiplies a rate, such as a library size; None: 1.

    >>> batch = Batch(torch.zeros(5, 3), observed=torch.ones(5, 3, dtype=torch.bool))
    >>> batch.size, batch.rows(slice(2)).observed.shape
    (5, torch.Size([2, 3]))
    """

    x: Tensor
    observed: Tensor | None = None
    condition: Tensor | None = None
    exposure: Tensor | None = None

    @property
    def size(self) -> int:
        """B. (``len`` of a named tuple is the number of its fields.)"""
        return self.x.shape[0]

    @property
    def plain(self) -> bool:
        """Whether x is all there is."""
        return self.observed is None and self.condition is None and self.exposure is None

    @property
    def bare(self) -> Tensor | Batch:
        """x by itself, where it is all there is: what is not there costs nothing."""
        return self.x if self.plain else self

    def rows(self, index: Any) -> Batch:
        """The examples at an index that keeps the first axis."""
        return self._each(lambda part: part[index])

    def to(self, like: Tensor, non_blocking: bool = False) -> Batch:
        """The same on a tensor's device, its numbers of the tensor's dtype; a mask stays a mask."""

        def moved(part: Tensor) -> Tensor:
            dtype = torch.bool if part.dtype == torch.bool else like.dtype
            return part.to(like.device, dtype, non_blocking=non_blocking)

        return self._each(moved)

    def split(self, size: int) -> list[Batch]:
        """The same in pieces of so many examples."""
        return [self.rows(slice(start, start + size)) for start in range(0, self.size, size)]

    def repeated(self, count: int) -> Batch:
        """Each example so many times, one after the other."""
        return self._each(lambda part: part.repeat_interleave(count, 0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """What a function makes of each part that there is."""
        x, observed, condition, exposure = self
        return Batch(
            change(x),
            None if observed is None else change(observed),
            None if condition is None else change(condition),
            None if exposure is None else change(exposure),
        )


def size_of(x: Tensor | Batch) -> int:
    """How many examples there are."""
    return x.size if isinstance(x, Batch) else len(x)

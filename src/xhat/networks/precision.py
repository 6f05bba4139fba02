"""Reduced precision for networks alone: their products in bfloat16, everything that a law computes in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from xhat.errors import ConfigError

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


class Reducible(nn.Module):
    """A module that runs its networks in reduced precision when it is told to.

    ``reduced`` is None (as the weights are), or the dtype of the networks' products. The weights stay float32, and what a
    module puts out is of the dtype that came in.
    """

    reduced: torch.dtype | None = None

    def in_precision(self, x: Tensor) -> contextlib.AbstractContextManager[object]:
        """The context to run networks in."""
        if self.reduced is None:
            return contextlib.nullcontext()
        # Weights change at every step, so a cast of them is never used twice.
        return torch.autocast(x.device.type, self.reduced, cache_enabled=False)


@contextlib.contextmanager
def reduced(module: nn.Module, precision: str) -> Iterator[None]:
    """Networks of a module in a precision, for the time of a block.

    Raises:
        ConfigError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, was {precision!r}")
    parts = [part for part in module.modules() if isinstance(part, Reducible)]
    for part in parts:
        part.reduced = PRECISIONS[precision]
    try:
        yield
    finally:
        for part in parts:
            part.reduced = None
